import {
  type CollectedStatistics,
  collectStatistics,
  decodeStatistics,
  encodeStatistics,
  mergeStatistics,
  scaleStatistics,
} from "@coppice/calibrate";
import {
  type ExtraField,
  extraFields,
  extrasOf,
  moeLayers,
  type Progress,
  RunEmitter,
  type Runner,
  type StatisticsField,
  statisticsFields,
  unusedExperts,
} from "@coppice/core";
import { type MemoryModel, memoryModel, randomModel, sampleShapes, slowForward } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { expectNear, load, models, randomSequences } from "./models.js";

/** The sums as their definitions say, from the logits and expert outputs of the slow float64 model. */
function slowStatistics(source: MemoryModel, sequences: readonly Int32Array[]) {
  const results = sequences.map((ids) => slowForward(source, [...ids]));
  return moeLayers(source.model).map(({ index, feedForward: { router, experts } }, i) => {
    const tokens = results.flatMap(({ layers }) =>
      (layers[i]?.choices ?? []).map((choices, t) => ({ choices, logits: layers[i]?.routerLogits[t] ?? [] })),
    );
    const total = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0);
    const perExpert = (value: (expert: number) => number) => experts.map((_, expert) => value(expert));
    const power = (b: number, c: number) =>
      perExpert((expert) =>
        total(
          tokens.flatMap(({ choices }) =>
            choices
              .filter(({ slot }) => slot === expert)
              .map(({ gate, output }) => {
                // f(g x) contains g already.
                const exponent = router.scalesInput ? Math.max(0, b - c) : b;
                return gate ** exponent * Math.hypot(...output) ** c;
              }),
          ),
        ),
      );
    const sums: Record<StatisticsField, number[]> = {
      count: power(0, 0),
      gate: power(1, 0),
      gate2: power(2, 0),
      norm: power(0, 1),
      gateNorm: power(1, 1),
      gate2Norm: power(2, 1),
      norm2: power(0, 2),
      gateNorm2: power(1, 2),
      gate2Norm2: power(2, 2),
      probability: perExpert((expert) =>
        total(
          tokens.map(
            ({ logits }) => Math.exp(logits[expert] as number) / total(logits.map((z) => Math.exp(z))),
          ),
        ),
      ),
      topLogit: perExpert((expert) =>
        total(
          tokens.map(({ logits }) =>
            logits.indexOf(Math.max(...logits)) === expert ? (logits[expert] as number) : 0,
          ),
        ),
      ),
      routedLogit: perExpert((expert) =>
        total(
          tokens.map(({ choices, logits }) =>
            choices.some(({ slot }) => slot === expert) ? (logits[expert] as number) : 0,
          ),
        ),
      ),
      logitGram: experts.flatMap((_, one) =>
        perExpert((other) =>
          total(tokens.map(({ logits }) => (logits[one] as number) * (logits[other] as number))),
        ),
      ),
    };
    const choices = tokens.flatMap((token) => token.choices);
    return { layer: index, tokens: tokens.length, topK: router.topK, choices, ...sums };
  });
}

describe.each(Object.keys(models))("statistics of %s", (name) => {
  const lengths = [9, 2, 14, 1, 6];

  test("are the sums that their definitions say", async () => {
    const source = await (models[name] as () => Promise<MemoryModel>)();
    const sequences = randomSequences(source.model.vocabSize, lengths);
    await using runner = await load(source);
    const found = await collectStatistics({ runner, sequences, name: "test", tokenBudget: 12 });
    const expected = slowStatistics(source, sequences);
    expect(found.model).toBe(source.model.fingerprint);
    expect(found.tokens).toBe(32);
    expect(found.layers.map(({ layer, tokens }) => [layer, tokens])).toEqual(
      expected.map(({ layer, tokens }) => [layer, tokens]),
    );
    found.layers.forEach((layer, i) => {
      const slow = expected[i] as (typeof expected)[number];
      expect([...layer.count]).toEqual(slow.count);
      const skipped = slow.choices.filter(({ slot }) => slot < 0).length;
      expect(layer.count.reduce((a, b) => a + b)).toBe(32 * slow.topK - skipped);
      if (name === "routers that skip experts") expect(skipped).toBeGreaterThan(0);
      for (const field of statisticsFields) expectNear(field, layer[field], slow[field], 1e-5);
    });
  });

  test("of two parts add up to those of the whole", async () => {
    const source = await (models[name] as () => Promise<MemoryModel>)();
    const sequences = randomSequences(source.model.vocabSize, lengths);
    await using runner = await load(source);
    const whole = await collectStatistics({ runner, sequences, name: "whole" });
    const first = await collectStatistics({ runner, sequences: sequences.slice(0, 2), name: "first" });
    const second = await collectStatistics({ runner, sequences: sequences.slice(2), name: "second" });
    const sum = mergeStatistics(first, second);
    expect(sum.tokens).toBe(whole.tokens);
    expect(sum.sources.map((s) => [s.name, s.tokens])).toEqual([
      ["first", 11],
      ["second", 21],
    ]);
    sum.layers.forEach((layer, i) => {
      const expected = whole.layers[i] as CollectedStatistics["layers"][number];
      expect(layer.tokens).toBe(expected.tokens);
      expect(layer.count).toEqual(expected.count);
      for (const field of statisticsFields) expectNear(field, layer[field], expected[field], 1e-12);
    });
  });
});

describe("collectStatistics", () => {
  const source = randomModel({ seed: 5 });
  const sequences = randomSequences(source.model.vocabSize, [5, 7, 3, 8]);

  test("bounds the tokens of a run and reports progress", async () => {
    await using runner = await load(source);
    const sizes: number[] = [];
    const counting: Runner = Object.create(runner, {
      model: { value: runner.model },
      run: {
        value: (request: Parameters<Runner["run"]>[0]) => {
          sizes.push(request.sequences.reduce((sum, { length }) => sum + length, 0));
          return runner.run(request);
        },
      },
    });
    const emitter = new RunEmitter();
    const seen: Progress[] = [];
    emitter.on("progress", (progress) => seen.push(progress));
    await collectStatistics({ runner: counting, sequences, name: "test", tokenBudget: 12, emitter });
    expect(sizes).toEqual([12, 11]);
    expect(seen.map(({ done, total, unit }) => [done, total, unit])).toEqual([
      [12, 23, "tokens"],
      [23, 23, "tokens"],
    ]);
    expect(seen.at(-1)?.etaMs).toBe(0);
    sizes.length = 0;
    await collectStatistics({ runner: counting, sequences, name: "test", tokenBudget: 1 });
    expect(sizes).toEqual([5, 7, 3, 8]);
  });

  test("knows the same data again", async () => {
    await using runner = await load(source);
    const hash = async (data: Int32Array[]) =>
      (await collectStatistics({ runner, sequences: data, name: "test" })).sources[0]?.hash;
    const once = await hash([Int32Array.of(1, 2), Int32Array.of(3)]);
    expect(once).toMatch(/^[0-9a-f]{64}$/);
    expect(await hash([Int32Array.of(1, 2), Int32Array.of(3)])).toBe(once);
    expect(await hash([Int32Array.of(1), Int32Array.of(2, 3)])).not.toBe(once);
  });

  test("records what the data is", async () => {
    await using runner = await load(source);
    const collect = { runner, sequences, name: "test" };
    expect((await collectStatistics(collect)).sources).toMatchObject([
      { name: "test", sequences: 4, tokens: 23, kind: "text", weight: 1, options: {} },
    ]);
    const chat = { ...collect, kind: "prompts", sourceOptions: { chat: true } } as const;
    expect((await collectStatistics(chat)).sources).toMatchObject([
      { kind: "prompts", options: { chat: true } },
    ]);
  });

  test.each(["latent-attention", "multipliers", "scaled-inputs"] as const)(
    "collects more on demand of %s, and adds it up",
    async (name) => {
      const source = randomModel(sampleShapes[name]);
      await using runner = await load(source);
      const data = randomSequences(source.model.vocabSize, [6, 9, 4]);
      const collect = (part: Int32Array[], extras?: readonly ExtraField[]) =>
        collectStatistics({ runner, sequences: part, name: "test", ...(extras && { extras }) });
      const whole = await collect(data, ["outputNorm2", "outputSum", "peak", "change"]);
      expect(extrasOf(whole)).toEqual(["change", "peak", "outputSum", "outputNorm2"]);
      expect(extrasOf(await collect(data, ["peak"]))).toEqual(["peak"]);
      const bare = await collect(data);
      expect(extrasOf(bare)).toEqual([]);
      const parts = [await collect(data.slice(0, 1), extraFields), await collect(data.slice(1), extraFields)];
      const sum = mergeStatistics(parts[0] as CollectedStatistics, parts[1] as CollectedStatistics);
      const results = data.map((ids) => slowForward(source, [...ids]));
      whole.layers.forEach((layer, i) => {
        for (const field of statisticsFields) expect(layer[field]).toEqual(bare.layers[i]?.[field]);
        const outputs = layer.count.reduce<number[][][]>((all, _, expert) => {
          const choices = results.flatMap(({ layers }) => layers[i]?.choices.flat() ?? []);
          all.push(choices.filter(({ slot }) => slot === expert).map(({ output }) => [...output]));
          return all;
        }, []);
        const peaks = outputs.map((rows) => Math.max(0, ...rows.flat().map(Math.abs)));
        const hidden = source.model.hiddenSize;
        const sums = outputs.flatMap((rows) =>
          Array.from({ length: hidden }, (_, h) =>
            rows.reduce((total, row) => total + (row[h] as number), 0),
          ),
        );
        expectNear("peak", layer.peak ?? [], peaks, 1e-5);
        expectNear("outputNorm2", layer.outputNorm2 ?? [], layer.norm2, 1e-6);
        expectNear("outputSum", layer.outputSum ?? [], sums, 1e-5);
        const merged = sum.layers[i] as typeof layer;
        expect(merged.peak).toEqual(layer.peak);
        expectNear("change", merged.change ?? [], layer.change ?? [], 1e-12);
        expectNear("outputSum", merged.outputSum ?? [], layer.outputSum ?? [], 1e-12);
      });
      expect(() => mergeStatistics({ ...whole, sources: [] }, { ...bare, sources: [] })).toThrow(
        expect.objectContaining({ code: "COPPICE_USAGE", message: expect.stringContaining("peak") }),
      );
      const double = scaleStatistics(whole, 2);
      expect(double.layers[0]?.peak).toEqual(whole.layers[0]?.peak);
      expect(double.layers[0]?.change).toEqual(whole.layers[0]?.change?.map((value) => 2 * value));
      expect(await decodeStatistics(encodeStatistics(whole), "s")).toEqual(whole);
    },
  );

  test("leaves experts that no token reaches to be named", async () => {
    await using runner = await load(source);
    const short = await collectStatistics({ runner, sequences: [Int32Array.of(1)], name: "test" });
    const layers = moeLayers(source.model);
    const unused = unusedExperts(short);
    expect(unused.map(({ layer }) => layer)).toEqual(layers.map(({ index }) => index));
    unused.forEach(({ experts }, i) => {
      const { router, experts: all } = (layers[i] as (typeof layers)[number]).feedForward;
      expect(experts).toHaveLength(all.length - router.topK);
      for (const expert of experts) expect(short.layers[i]?.norm[expert]).toBe(0);
    });
    const everywhere = { ...short, layers: short.layers.map((l) => ({ ...l, count: l.count.map(() => 1) })) };
    expect(unusedExperts(everywhere)).toEqual([]);
  });

  test("names the layer and the expert of an activation that is not finite", async () => {
    const tensors = new Map(source.tensors);
    const ref = source.model.layers[1]?.feedForward;
    const down = ref?.kind === "moe" ? ref.experts[2]?.down.name : undefined;
    tensors.set(
      down as string,
      new Float32Array((tensors.get(down as string) as Float32Array).length).fill(3e38),
    );
    await using runner = await load(memoryModel(source.model, tensors));
    await expect(collectStatistics({ runner, sequences, name: "test" })).rejects.toMatchObject({
      code: "COPPICE_BACKEND_FAILED",
      message: expect.stringContaining("expert 2 of layer 1"),
      details: { layer: 1, expert: 2 },
    });
    await expect(runner.run({ sequences })).resolves.toBeDefined();
  });

  test("names the layer of a router logit that is not finite", async () => {
    const tensors = new Map(source.tensors);
    const ref = source.model.layers[0]?.feedForward;
    const router = ref?.kind === "moe" ? ref.router.weight.name : "";
    tensors.set(
      router,
      (tensors.get(router) as Float32Array).map((value, i) => (i < 16 ? value : value * 1e39)),
    );
    await using runner = await load(memoryModel(source.model, tensors));
    await expect(collectStatistics({ runner, sequences, name: "test" })).rejects.toMatchObject({
      code: "COPPICE_BACKEND_FAILED",
      message: expect.stringContaining("expert 1 of layer 0 got the router logit"),
    });
  });

  test("refuses data that is empty or too long, and stops when told", async () => {
    await using runner = await load(source);
    const collect = (data: Int32Array[], signal?: AbortSignal) =>
      collectStatistics({ runner, sequences: data, name: "test", ...(signal && { signal }) });
    await expect(collect([])).rejects.toMatchObject({ code: "COPPICE_TASK_EMPTY" });
    await expect(collect([Int32Array.of(1), new Int32Array(0)])).rejects.toMatchObject({
      code: "COPPICE_TASK_EMPTY",
      message: expect.stringContaining("sequence 1"),
    });
    await expect(collect([new Int32Array(257)])).rejects.toMatchObject({ code: "COPPICE_TASK_TOO_LONG" });
    await expect(collect(sequences, AbortSignal.abort())).rejects.toMatchObject({ code: "COPPICE_ABORTED" });
    for (const wrong of [{ parts: 0 }, { parts: 1.5 }, { tokenBudget: 0 }, { tokenBudget: Number.NaN }]) {
      await expect(collectStatistics({ runner, sequences, name: "test", ...wrong })).rejects.toMatchObject({
        code: "COPPICE_USAGE",
      });
    }
  });
});
