import {
  type CriterionPlugins,
  createRegistry,
  type LayerStatistics,
  mlpTensors,
  moeLayers,
  Rng,
  type ScoreRequest,
  type Statistics,
  type TensorRef,
} from "@coppice/core";
import { frequency, random, reap, softActivation, weightMagnitude } from "@coppice/criteria";
import { intoMemory, type MemoryModel, type SlowChoice, slowForward } from "@coppice/plugin-kit";
import { fixtureNames, loadFixture } from "@coppice/plugin-kit/node";
import { beforeAll, describe, expect, test } from "vitest";

const registry = createRegistry([random, frequency, softActivation, reap, weightMagnitude]);

async function score<N extends keyof CriterionPlugins>(
  name: N,
  request: Omit<ScoreRequest, "rng">,
  options: CriterionPlugins[N] = {} as CriterionPlugins[N],
): Promise<Float64Array[]> {
  const criterion = await registry.create("criterion", name, options as never, undefined);
  return criterion.score({ rng: Rng.fromSeed(1), ...request });
}

function expectNear(actual: readonly Float64Array[], expected: readonly number[][]): void {
  expect(actual.map((row) => row.length)).toEqual(expected.map((row) => row.length));
  actual.forEach((row, layer) => {
    row.forEach((value, expert) => {
      const wanted = expected[layer]?.[expert] as number;
      expect(Math.abs(value - wanted)).toBeLessThanOrEqual(1e-5 * Math.abs(wanted));
    });
  });
}

describe.each(fixtureNames)("criteria on %s", (name) => {
  let source: MemoryModel;
  let statistics: Statistics;
  /** [MoE layer][expert], every choice of that expert. */
  let routed: SlowChoice[][][];
  /** [MoE layer][token][expert] */
  let probabilities: number[][][];

  beforeAll(async () => {
    const { model, weights, golden } = await loadFixture(name);
    source = await intoMemory(model, weights);
    const results = golden.sequences.map((ids) => slowForward(source, [...ids]));
    const layers = moeLayers(model);
    const experts = layers.map(({ feedForward }) => feedForward.experts.map((_, expert) => expert));
    routed = layers.map((_, i) => {
      const choices = results.flatMap(({ layers }) => (layers[i]?.choices ?? []).flat());
      return (experts[i] as number[]).map((expert) => choices.filter(({ slot }) => slot === expert));
    });
    probabilities = layers.map((_, i) =>
      results
        .flatMap(({ layers }) => layers[i]?.routerLogits ?? [])
        .map((row) => row.map((z) => Math.exp(z) / row.reduce((sum, other) => sum + Math.exp(other), 0))),
    );
    const sums = (i: number, value: (choice: SlowChoice) => number) =>
      Float64Array.from(routed[i] as SlowChoice[][], (choices) =>
        choices.reduce((total, choice) => total + value(choice), 0),
      );
    statistics = {
      model: model.fingerprint,
      tokens: 48,
      layers: layers.map(
        ({ index }, i): LayerStatistics => ({
          layer: index,
          tokens: 48,
          count: sums(i, () => 1),
          gate: sums(i, ({ gate }) => gate),
          probability: Float64Array.from(experts[i] as number[], (expert) =>
            (probabilities[i] as number[][]).reduce((total, row) => total + (row[expert] as number), 0),
          ),
          norm: sums(i, ({ output }) => Math.hypot(...output)),
          squaredNorm: sums(i, ({ output }) => Math.hypot(...output) ** 2),
          gateNorm: sums(i, ({ gate, output }) => gate * Math.hypot(...output)),
          squaredGateNorm: sums(i, ({ gate, output }) => (gate * Math.hypot(...output)) ** 2),
        }),
      ),
    };
  });

  test("frequency counts the tokens that are routed to an expert", async () => {
    const found = await score("frequency", { model: source.model, statistics });
    expectNear(
      found,
      routed.map((experts) => experts.map((choices) => choices.length)),
    );
    expect(found.map((row) => row.reduce((a, b) => a + b))).toEqual(found.map(() => 48 * 2));
  });

  test("soft activation sums gate weights, or probabilities of all tokens", async () => {
    const { model } = source;
    const gates = (choices: SlowChoice[]) => choices.reduce((sum, { gate }) => sum + gate, 0);
    const byGate = await score("soft-activation", { model, statistics });
    expectNear(
      byGate,
      routed.map((experts) => experts.map(gates)),
    );
    const byProbability = await score("soft-activation", { model, statistics }, { tokens: "all" });
    const columns = probabilities.map((rows) =>
      (rows[0] as number[]).map((_, expert) => rows.reduce((sum, row) => sum + (row[expert] as number), 0)),
    );
    expectNear(byProbability, columns);
  });

  test("REAP averages gate times output norm over the routed tokens", async () => {
    const mean = (choices: SlowChoice[]) => {
      const added = choices.map(({ gate, output }) => Math.hypot(...output.map((value) => gate * value)));
      return added.reduce((a, b) => a + b, 0) / choices.length;
    };
    expectNear(
      await score("reap", { model: source.model, statistics }),
      routed.map((row) => row.map(mean)),
    );
  });

  test("weight magnitude is the Frobenius norm of all weights of an expert", async () => {
    const read: TensorRef[] = [];
    const buffers = new Set<ArrayBufferLike>();
    const weights: MemoryModel["weights"] = {
      read(ref, options) {
        read.push(ref);
        if (options?.into) buffers.add(options.into.buffer);
        return source.weights.read(ref, options);
      },
    };
    const layers = moeLayers(source.model);
    const expected = layers.map(({ feedForward }) =>
      feedForward.experts.map((expert) =>
        Math.hypot(
          ...mlpTensors(expert).flatMap(({ name: tensor }) => [...(source.tensors.get(tensor) ?? [])]),
        ),
      ),
    );
    expectNear(await score("weight-magnitude", { model: source.model, weights }), expected);
    expect(read.length).toBe(layers.length * 8 * 3);
    expect(buffers.size).toBe(1);
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
    const before = statistics.layers.map(({ count, gate }) => [count.slice(), gate.slice()]);
    for (const criterion of ["frequency", "soft-activation"] as const) {
      for (const row of await score(criterion, { model, statistics })) row.fill(-1);
    }
    expect(statistics.layers.map(({ count, gate }) => [count, gate])).toEqual(before);
  });
});

test("REAP gives 0 to an expert that serves no token", async () => {
  const { model } = await loadFixture("mixtral");
  const layer = (index: number): LayerStatistics => ({
    layer: index,
    tokens: 4,
    ...(Object.fromEntries(
      ["count", "gate", "probability", "norm", "squaredNorm", "gateNorm", "squaredGateNorm"].map((field) => [
        field,
        Float64Array.of(4, 0, 1, 3, 0, 0, 0, 0),
      ]),
    ) as Omit<LayerStatistics, "layer" | "tokens">),
  });
  const statistics = { model: model.fingerprint, tokens: 4, layers: [0, 1, 2].map(layer) };
  const [scores] = await score("reap", { model, statistics });
  expect([...(scores as Float64Array)]).toEqual([1, 0, 1, 1, 0, 0, 0, 0]);
});

test("random follows the generator, and every expert is as likely as another", async () => {
  const { model } = await loadFixture("mixtral");
  expect(await score("random", { model })).toEqual(await score("random", { model }));
  const rng = Rng.fromSeed(5);
  const criterion = await registry.create("criterion", "random", {}, undefined);
  const wins = new Array<number>(8).fill(0);
  for (let i = 0; i < 1000; i++) {
    for (const row of await criterion.score({ model, rng })) {
      const best = row.indexOf(Math.max(...row));
      wins[best] = (wins[best] as number) + 1;
    }
  }
  // 3000 draws over 8 experts: mean 375, standard deviation 18.
  for (const count of wins) expect(Math.abs(count - 375)).toBeLessThan(90);
});

test("weight magnitude needs a reader and stops when told", async () => {
  const { model, weights } = await loadFixture("mixtral");
  await expect(score("weight-magnitude", { model })).rejects.toMatchObject({ code: "COPPICE_USAGE" });
  const signal = AbortSignal.abort();
  await expect(score("weight-magnitude", { model, weights, signal })).rejects.toMatchObject({
    code: "COPPICE_ABORTED",
  });
});

test("unknown options are refused", async () => {
  const create = (options: unknown) => reap.create(options, undefined);
  await expect(create({ keep: 4 })).rejects.toMatchObject({ code: "COPPICE_PLUGIN_OPTIONS" });
  await expect(softActivation.create({ tokens: "some" }, undefined)).rejects.toMatchObject({
    code: "COPPICE_PLUGIN_OPTIONS",
  });
});
