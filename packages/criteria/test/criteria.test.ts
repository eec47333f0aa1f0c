import { reference } from "@coppice/backend-reference";
import { collectStatistics } from "@coppice/calibrate";
import {
  createRegistry,
  type ExtraField,
  mlpTensors,
  moeLayers,
  type Statistics,
  type TensorRef,
} from "@coppice/core";
import { ean, hiddenUnitScores, reap, softActivation } from "@coppice/criteria";
import { type MemoryModel, randomModel, type SlowChoice, sampleShapes } from "@coppice/plugin-kit";
import { fixtureNames } from "@coppice/plugin-kit/node";
import { beforeAll, describe, expect, test } from "vitest";
import { expectNear, fixtureModel, score } from "./score.js";
import { added, norm, perExpert, type SlowToken, slowTokens, total } from "./slow-tokens.js";

/** What criteria need of what is collected on demand. */
const extras: readonly ExtraField[] = ["change", "peak", "outputSum", "outputNorm2", "unitSquares"];

/** A checkpoint of every family, which have every routing order among them, and random models of rarer kinds. */
const sources: Record<string, () => Promise<MemoryModel>> = {
  ...Object.fromEntries(fixtureNames.map((name) => [name, () => fixtureModel(name)])),
  ...Object.fromEntries(
    (["many-experts", "latent-attention", "corrected-softmax", "ungated-experts"] as const).map((name) => [
      name,
      async () => randomModel(sampleShapes[name]),
    ]),
  ),
};

describe.each(Object.keys(sources))("criteria on %s", (name) => {
  let source: MemoryModel;
  let statistics: Statistics;
  /** [MoE layer][token] */
  let tokens: SlowToken[][];
  /** Of every expert, from the choices of the tokens that are routed to it. */
  const perChoices = (value: (choices: readonly SlowChoice[]) => number) =>
    perExpert(source, tokens, (layer, expert) =>
      value(layer.flatMap(({ choices }) => choices.filter(({ slot }) => slot === expert))),
    );
  const mean = (values: readonly number[]) => (values.length === 0 ? 0 : total(values) / values.length);

  beforeAll(async () => {
    source = await (sources[name] as () => Promise<MemoryModel>)();
    const sequences = [11, 5, 8].map((length, s) =>
      Int32Array.from({ length }, (_, i) => (7 * s + 5 * i * i + i) % source.model.vocabSize),
    );
    tokens = slowTokens(source, sequences);
    const backend = await createRegistry([reference]).create("backend", "reference", {}, undefined);
    await using runner = await backend.load(source);
    statistics = await collectStatistics({ runner, sequences, name: "test", extras });
  });

  test("frequency counts the tokens that are routed to an expert", async () => {
    const found = await score("frequency", { model: source.model, statistics });
    expectNear(
      found,
      perChoices((choices) => choices.length),
    );
    const topK = moeLayers(source.model).map(({ feedForward }) => feedForward.router.topK);
    expect(found.map((row) => row.reduce((a, b) => a + b))).toEqual(topK.map((k) => 24 * k));
  });

  test("soft activation sums gate weights, or probabilities of all tokens", async () => {
    const { model } = source;
    expectNear(
      await score("soft-activation", { model, statistics }),
      perChoices((choices) => total(choices.map(({ gate }) => gate))),
    );
    const byProbability = await score("soft-activation", { model, statistics }, { tokens: "all" });
    expectNear(
      byProbability,
      perExpert(source, tokens, (layer, expert) =>
        total(
          layer.map(
            ({ logits }) => Math.exp(logits[expert] as number) / total(logits.map((z) => Math.exp(z))),
          ),
        ),
      ),
    );
  });

  test("EAN sums or averages output norms over the routed tokens", async () => {
    const { model } = source;
    const sums = perChoices((choices) => total(choices.map(norm)));
    expectNear(await score("ean", { model, statistics }), sums);
    const means = perChoices((choices) => mean(choices.map(norm)));
    expectNear(await score("ean", { model, statistics }, { over: "mean" }), means);
    expectNear(await score("man", { model, statistics }), means);
  });

  test("MSAN averages squared output norms", async () => {
    expectNear(
      await score("msan", { model: source.model, statistics }),
      perChoices((choices) => mean(choices.map((choice) => norm(choice) ** 2))),
    );
  });

  test("REAP averages the norms of what an expert really adds to its tokens", async () => {
    const scalesInput = moeLayers(source.model)[0]?.feedForward.router.scalesInput;
    expectNear(
      await score("reap", { model: source.model, statistics }),
      perChoices((choices) => mean(choices.map((choice) => added(choice, scalesInput)))),
    );
  });

  test("moments has every other criterion of its family as a case", async () => {
    const request = { model: source.model, statistics };
    const of = (a: number, b: 0 | 1 | 2, c: 0 | 1 | 2) => score("moments", request, { a, b, c });
    expect(await of(1, 0, 0)).toEqual(await score("frequency", request));
    expect(await of(1, 1, 0)).toEqual(await score("soft-activation", request));
    expect(await of(1, 0, 1)).toEqual(await score("ean", request));
    expect(await of(0, 0, 1)).toEqual(await score("man", request));
    expect(await of(0, 0, 2)).toEqual(await score("msan", request));
    expect(await of(0, 1, 1)).toEqual(await score("reap", request));
    const scalesInput = moeLayers(source.model)[0]?.feedForward.router.scalesInput;
    expectNear(
      await score("moments", request),
      perChoices((choices) => total(choices.map((choice) => added(choice, scalesInput)))),
    );
    // The norm of f(g x) has one g already.
    const powers = ({ gate, output }: SlowChoice, b: number, c: number) =>
      gate ** (scalesInput ? Math.max(0, b - c) : b) * norm({ output }) ** c;
    for (const a of [0, 0.5, 1]) {
      for (const b of [0, 1, 2] as const) {
        for (const c of [0, 1, 2] as const) {
          expectNear(
            await of(a, b, c),
            perChoices(
              (choices) => choices.length ** a * mean(choices.map((choice) => powers(choice, b, c))),
            ),
          );
        }
      }
    }
  });

  test("TCESS averages the logits of the tokens that choose an expert", async () => {
    const request = { model: source.model, statistics };
    const over = (counts: (token: SlowToken, expert: number) => boolean) =>
      perExpert(source, tokens, (layer, expert) =>
        mean(layer.map((token) => (counts(token, expert) ? (token.logits[expert] as number) : 0))),
      );
    expectNear(
      await score("tcess", request),
      over(({ logits }, expert) => logits.indexOf(Math.max(...logits)) === expert),
      "row",
    );
    expectNear(
      await score("tcess", request, { tokens: "routed" }),
      over(({ choices }, expert) => choices.some(({ slot }) => slot === expert)),
      "row",
    );
  });

  test("EASY-EP weighs tokens by how far the experts turn them", async () => {
    const { model } = source;
    const scalesInput = moeLayers(model)[0]?.feedForward.router.scalesInput;
    const change = ({ residual, choices }: SlowToken) => {
      const after = residual.map((value, i) => {
        const sum = total(
          choices.map(({ gate, output }) => (scalesInput ? 1 : gate) * (output[i] as number)),
        );
        return value + (model.residualScale ?? 1) * sum;
      });
      const both = total(residual.map((value, i) => value * (after[i] as number)));
      return Math.max(0, 1 - both / (Math.hypot(...residual) * Math.hypot(...after)));
    };
    expectNear(
      await score("easy-ep", { model, statistics }),
      perExpert(source, tokens, (layer, expert) =>
        total(
          layer.flatMap((token) =>
            token.choices
              .filter(({ slot }) => slot === expert)
              .map((choice) => change(token) * added(choice, scalesInput)),
          ),
        ),
      ),
    );
  });

  test("MoNE multiplies the deviation of outputs with the gate weights received", async () => {
    const { model } = source;
    const deviation = (choices: readonly { output: readonly number[] }[]) => {
      const variances = (choices[0]?.output ?? []).map((_, i) => {
        const values = choices.map(({ output }) => output[i] as number);
        return mean(values.map((value) => (value - mean(values)) ** 2));
      });
      return Math.sqrt(total(variances));
    };
    const gates = (choices: readonly { gate: number }[]) => total(choices.map(({ gate }) => gate));
    expectNear(
      await score("mone", { model, statistics }),
      perChoices((choices) => deviation(choices) * gates(choices)),
      "row",
    );
    expectNear(
      await score("mone", { model, statistics }, { score: "variance" }),
      perChoices(deviation),
      "row",
    );
  });

  test("HEAPr without gradients sums the energies of hidden units", async () => {
    const { model, weights } = source;
    const request = { model, statistics, weights };
    /** [MoE layer][expert][unit]: mean of a² over the routed tokens, times ‖w‖². */
    const units = perExpert(source, tokens, (layer, expert, spec) => {
      const down = source.tensors.get(spec.down.name) as Float32Array;
      const own = layer.flatMap(({ choices, every }) =>
        choices.some(({ slot }) => slot === expert) ? [every()] : [],
      );
      return Array.from({ length: spec.width }, (_, unit) => {
        const column = down.filter((_, i) => i % spec.width === unit);
        const energy = mean(own.map((experts) => (experts[expert]?.units[unit] as number) ** 2));
        return energy * total([...column].map((weight) => weight ** 2));
      });
    });
    expectNear(
      await hiddenUnitScores(request),
      units.map((experts) => experts.flat()),
      "row",
    );
    const served = perChoices((choices) => choices.length);
    expectNear(
      await score("heapr-lite", request),
      units.map((experts) => experts.map(total)),
    );
    expectNear(
      await score("heapr-lite", request, { over: "sum" }),
      units.map((experts, i) => experts.map((own, j) => (served[i]?.[j] as number) * total(own))),
    );
  });

  test("super experts come before all others, by their peaks", async () => {
    const { model } = source;
    const base = await score("reap", { model, statistics });
    const peaks = perChoices((choices) =>
      Math.max(0, ...choices.flatMap(({ output }) => output.map(Math.abs))),
    );
    const all = peaks.flat().sort((a, b) => a - b);
    const bar = Math.max(all[Math.floor(all.length * 0.8)] as number, 0.5 * (all.at(-1) as number));
    // Between two peaks, so that it does not matter how the quantile is taken between them.
    const quantile = (all.filter((peak) => peak <= bar).length - 0.5) / (all.length - 1);
    const found = await score("super-experts", { model, statistics }, { quantile, share: 0.5, depth: 1 });
    const isSuper = peaks.map((row) => row.map((peak) => peak > bar));
    const highest = Math.max(...base.flatMap((row) => [...row]));
    const ranked: { peak: number; score: number }[] = [];
    found.forEach((row, layer) => {
      row.forEach((value, expert) => {
        if (!isSuper[layer]?.[expert]) expect(value).toBe(base[layer]?.[expert]);
        else ranked.push({ peak: peaks[layer]?.[expert] as number, score: value });
      });
    });
    expect(ranked.length).toBeGreaterThan(0);
    ranked.sort((a, b) => a.peak - b.peak);
    ranked.forEach(({ score: value }, i) => {
      expect(value).toBeGreaterThan(ranked[i - 1]?.score ?? highest);
    });
    const none = await score("super-experts", { model, statistics }, { depth: 0 });
    expect(none).toEqual(base);
  });

  test("criteria of weights read each tensor once, into one buffer", async () => {
    const layers = moeLayers(source.model);
    const experts = layers.map(({ feedForward }) => feedForward.experts);
    const tensor = ({ name }: TensorRef) => [...(source.tensors.get(name) as Float32Array)];
    for (const criterion of ["weight-magnitude", "aimer"] as const) {
      const read: string[] = [];
      const buffers = new Set<ArrayBufferLike>();
      const weights: MemoryModel["weights"] = {
        read(ref, options) {
          read.push(ref.name);
          if (options?.into) buffers.add(options.into.buffer);
          return source.weights.read(ref, options);
        },
      };
      const found = await score(criterion, { model: source.model, weights });
      expect(buffers.size).toBe(1);
      expect(new Set(read).size).toBe(read.length);
      const expected = experts.map((row) =>
        row.map((expert) => {
          if (criterion === "weight-magnitude") return Math.hypot(...mlpTensors(expert).flatMap(tensor));
          const values = [expert.gate, expert.up, expert.down].flatMap((ref) => (ref ? tensor(ref) : []));
          const absoluteMean = total(values.map(Math.abs)) / values.length;
          return -absoluteMean / Math.sqrt(total(values.map((value) => value ** 2)) / values.length);
        }),
      );
      expectNear(found, expected);
    }
  });

  test("statistics of another model or shape are refused", async () => {
    const { model } = source;
    await expect(score("reap", { model })).rejects.toMatchObject({ code: "COPPICE_STATS_MISSING" });
    const other = { ...statistics, model: "other" };
    await expect(score("reap", { model, statistics: other })).rejects.toMatchObject({
      code: "COPPICE_STATS_MODEL",
    });
    const fewer = { ...statistics, layers: statistics.layers.slice(1) };
    await expect(score("frequency", { model, statistics: fewer })).rejects.toMatchObject({
      code: "COPPICE_STATS_MODEL",
    });
  });

  test("scores may be changed without harm to the statistics", async () => {
    const { model } = source;
    const before = structuredClone(statistics.layers);
    for (const criterion of ["frequency", "soft-activation", "ean", "tcess"] as const) {
      for (const row of await score(criterion, { model, statistics })) row.fill(-1);
    }
    expect(statistics.layers).toEqual(before);
  });
});

test("unknown options are refused", async () => {
  await expect(reap.create({ keep: 4 }, undefined)).rejects.toMatchObject({ code: "COPPICE_PLUGIN_OPTIONS" });
  await expect(softActivation.create({ tokens: "some" }, undefined)).rejects.toMatchObject({
    code: "COPPICE_PLUGIN_OPTIONS",
  });
  await expect(ean.create({ over: "max" }, undefined)).rejects.toMatchObject({
    code: "COPPICE_PLUGIN_OPTIONS",
  });
  const { model } = randomModel({ seed: 1 });
  for (const powers of [{ a: 2 }, { b: 3 as 2 }, { c: 0.5 as 1 }]) {
    await expect(score("moments", { model }, powers)).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
    });
  }
});
