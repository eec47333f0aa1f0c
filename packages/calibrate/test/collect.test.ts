import { reference } from "@coppice/backend-reference";
import { type CollectedStatistics, collectStatistics, mergeStatistics } from "@coppice/calibrate";
import { createRegistry, type Progress, Rng, RunEmitter, type Runner, statisticsFields } from "@coppice/core";
import { intoMemory, type MemoryModel, memoryModel, randomModel, slowForward } from "@coppice/plugin-kit";
import { fixtureNames, loadFixture } from "@coppice/plugin-kit/node";
import { describe, expect, test } from "vitest";

async function load({ model, weights }: MemoryModel): Promise<Runner> {
  const backend = await createRegistry([reference]).create("backend", "reference", {}, undefined);
  return backend.load({ model, weights });
}

function randomSequences(vocab: number, lengths: readonly number[], seed = 3): Int32Array[] {
  const rng = Rng.fromSeed(seed);
  return lengths.map((length) => Int32Array.from({ length }, () => rng.integer(vocab)));
}

/** The sums as their definitions say, from the logits and expert outputs of the slow float64 model. */
function slowStatistics(source: MemoryModel, sequences: readonly Int32Array[]) {
  const results = sequences.map((ids) => slowForward(source, [...ids]));
  return (results[0]?.layers ?? []).map(({ layer }, i) => {
    const tokens = results.flatMap(({ layers }) =>
      (layers[i]?.choices ?? []).map((choices, t) => ({ choices, logits: layers[i]?.routerLogits[t] ?? [] })),
    );
    const experts = tokens[0]?.logits.length ?? 0;
    const perExpert = (value: (expert: number) => number) =>
      Array.from({ length: experts }, (_, e) => value(e));
    const overRouted = (value: (gate: number, norm: number) => number) =>
      perExpert((expert) =>
        tokens
          .flatMap(({ choices }) => choices.filter(({ slot }) => slot === expert))
          .reduce((sum, { gate, output }) => sum + value(gate, Math.hypot(...output)), 0),
      );
    return {
      layer,
      tokens: tokens.length,
      count: overRouted(() => 1),
      gate: overRouted((g) => g),
      probability: perExpert((expert) =>
        tokens.reduce((sum, { logits }) => {
          const all = logits.reduce((total, z) => total + Math.exp(z), 0);
          return sum + Math.exp(logits[expert] as number) / all;
        }, 0),
      ),
      norm: overRouted((_, f) => f),
      squaredNorm: overRouted((_, f) => f ** 2),
      gateNorm: overRouted((g, f) => g * f),
      squaredGateNorm: overRouted((g, f) => g ** 2 * f ** 2),
    };
  });
}

function expectNear(actual: ArrayLike<number>, expected: ArrayLike<number>, relative: number): void {
  expect(actual.length).toBe(expected.length);
  for (let i = 0; i < expected.length; i++) {
    const tolerance = relative * Math.max(1e-30, Math.abs(expected[i] as number));
    expect(Math.abs((actual[i] as number) - (expected[i] as number))).toBeLessThanOrEqual(tolerance);
  }
}

const sources: Record<string, () => Promise<MemoryModel>> = {
  ...Object.fromEntries(
    fixtureNames.map((name) => [
      name,
      async () => {
        const { model, weights } = await loadFixture(name);
        return intoMemory(model, weights);
      },
    ]),
  ),
  "a model with dense layers and gates that are not normalised": async () =>
    randomModel({ seed: 4, layers: 4, denseLayers: [0, 3], normalize: false, experts: 6 }),
};

describe.each(Object.keys(sources))("statistics of %s", (name) => {
  const lengths = [9, 2, 14, 1, 6];

  test("are the sums that their definitions say", async () => {
    const source = await (sources[name] as () => Promise<MemoryModel>)();
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
      expect(layer.count.reduce((a, b) => a + b)).toBe(32 * 2);
      for (const field of statisticsFields) expectNear(layer[field], slow[field], 1e-5);
    });
  });

  test("of two parts add up to those of the whole", async () => {
    const source = await (sources[name] as () => Promise<MemoryModel>)();
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
      for (const field of statisticsFields) expectNear(layer[field], expected[field], 1e-12);
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
  });
});

describe("mergeStatistics", () => {
  test("refuses other models and the same data twice", async () => {
    const source = randomModel({ seed: 5 });
    const sequences = randomSequences(source.model.vocabSize, [5]);
    await using runner = await load(source);
    const statistics = await collectStatistics({ runner, sequences, name: "data.txt" });
    expect(() => mergeStatistics(statistics, { ...statistics, model: "other", sources: [] })).toThrow(
      expect.objectContaining({ code: "COPPICE_STATS_MODEL" }),
    );
    const fewer = { ...statistics, layers: statistics.layers.slice(1), sources: [] };
    expect(() => mergeStatistics(statistics, fewer)).toThrow(
      expect.objectContaining({ code: "COPPICE_STATS_MODEL" }),
    );
    expect(() => mergeStatistics(statistics, statistics)).toThrow(
      expect.objectContaining({ code: "COPPICE_USAGE", message: expect.stringContaining("data.txt") }),
    );
  });
});
