import {
  createPlan,
  type LayerPlan,
  type LayerSample,
  type LayerStatistics,
  type MoeLayer,
  moeLayers,
  type Plan,
  packFloats,
  parsePlan,
  planFromScores,
  Rng,
  type Statistics,
} from "@coppice/core";
import { type MemoryModel, randomModel, sampleShapes, slowForward } from "@coppice/plugin-kit";
import { type LayerRepair, repairRouter } from "@coppice/router-repair";
import { describe, expect, test } from "vitest";
import { sampled, sequences } from "./sample.js";

/** A plan that keeps so many experts with random scores in the first layer with experts alone. */
function firstLayerPlan({ model }: MemoryModel, keep: number): Plan {
  const rng = Rng.fromSeed(4);
  const scores = moeLayers(model).map(({ feedForward }) => feedForward.experts.map(() => rng.uniform()));
  return createPlan(model, planFromScores(model, scores, keep).layers.slice(0, 1));
}

/** Σ ‖y - y'‖² and Σ ‖y‖² of a layer over all tokens, in float64 and from the experts themselves. */
function slowError(source: MemoryModel, data: readonly Int32Array[], plan: Plan) {
  const { layer: index } = plan.layers[0] as LayerPlan;
  const outputs = (ids: Int32Array, under: Plan | undefined) => {
    const shown = slowForward(source, [...ids], under).layers.find(({ layer }) => layer === index);
    return (shown?.choices ?? []).map((choices) =>
      Array.from({ length: source.model.hiddenSize }, (_, h) =>
        choices.reduce((sum, { gate, output }) => sum + gate * (output[h] as number), 0),
      ),
    );
  };
  let error = 0;
  let norm = 0;
  for (const ids of data) {
    const [whole, other] = [outputs(ids, undefined), outputs(ids, plan)];
    whole.forEach((y, t) => {
      y.forEach((value, h) => {
        error += (value - (other[t]?.[h] as number)) ** 2;
        norm += value ** 2;
      });
    });
  }
  return { error, norm };
}

const shapes = [
  ["mixtral", { experts: 8, topK: 2, layers: 2, normalize: true }],
  ["many-experts", sampleShapes["many-experts"]],
  ["latent-attention", sampleShapes["latent-attention"]],
  ["low-rank-queries", sampleShapes["low-rank-queries"]],
  ["sigmoid-scores", sampleShapes["sigmoid-scores"]],
  ["corrected-softmax", sampleShapes["corrected-softmax"]],
  ["sparsemixer", sampleShapes.sparsemixer],
  ["multipliers", sampleShapes.multipliers],
  ["attention-sinks", sampleShapes["attention-sinks"]],
  ["ungated-experts", sampleShapes["ungated-experts"]],
] as const;

describe("repairRouter", () => {
  test.each(shapes)("reports the real errors of %s, and lowers them", async (_, shape) => {
    const source = randomModel(shape);
    const data = sequences(12, 12, 3, source.model.vocabSize);
    const statistics = await sampled(source, data);
    const { router, experts } = (moeLayers(source.model)[0] as MoeLayer).feedForward;
    const keep = router.groups ? experts.length / 2 : Math.max(router.topK, 3);
    const plan = firstLayerPlan(source, keep);
    const { plan: repaired, layers } = await repairRouter({ ...source, plan, statistics, rounds: 2 });
    expect(layers).toHaveLength(1);
    const [report] = layers as [LayerRepair];
    expect(report.exact).toBe(true);
    expect(report.after.heldOut).toBeLessThanOrEqual(report.before.heldOut);
    if (report.steps.length === 0) expect(repaired).toEqual(plan);
    else expect(report.after.heldOut).toBeLessThan(report.before.heldOut);
    expect(parsePlan(JSON.parse(JSON.stringify(repaired)), source.model)).toEqual(repaired);
    // Both parts together, from the model run in float64; norms of the parts follow from the two plans' errors.
    for (const [under, errors] of [
      [plan, report.before],
      [repaired, report.after],
    ] as const) {
      const { error, norm } = slowError(source, data, under);
      const low = Math.min(errors.fit, errors.heldOut);
      const high = Math.max(errors.fit, errors.heldOut);
      expect(error / norm).toBeGreaterThan(low * (1 - 1e-4));
      expect(error / norm).toBeLessThan(high * (1 + 1e-4));
    }
  });

  const small = { experts: 4, topK: 2, layers: 1, dtype: "F32" } as const;
  test.each([
    ["softmax-topk", small, 1e-6],
    ["topk-softmax with biases", { ...sampleShapes["attention-sinks"], ...small }, 1e-6],
    ["sigmoid-topk", { ...sampleShapes["sigmoid-scores"], ...small, normalize: false }, 0.01],
    // Gate weights leave open how large the sigmoids are, so that every round only comes nearer.
    ["sigmoid-topk that divides", { ...sampleShapes["sigmoid-scores"], ...small }, 0.2],
  ] as const)("finds a router of %s that is perfect", async (_, shape, left) => {
    const { statistics, source, plan } = await twins(randomModel(shape));
    const options = { ...source, plan, statistics };
    const close = await repairRouter({ ...options, caution: 0, rounds: 12 });
    const [report] = close.layers as [LayerRepair];
    expect(report.before.heldOut).toBeGreaterThan(0.01);
    expect(report.after.heldOut).toBeLessThan(left * report.before.heldOut);
    // A cautious fit gets some of the way with rows that change less.
    const cautious = await repairRouter(options);
    const once = cautious.layers[0] as LayerRepair;
    expect(once.after.heldOut).toBeLessThan(0.8 * report.before.heldOut);
    // What was repaired is where the next repair starts.
    const again = await repairRouter({ ...options, plan: close.plan });
    expect(again.layers[0]?.before.heldOut).toBeCloseTo(report.after.heldOut, 9);
  });

  test("takes merged experts for the mean of their members, and says so", async () => {
    const source = randomModel({ experts: 4, topK: 2, layers: 1 });
    const statistics = await sampled(source, sequences(8, 10, 6, source.model.vocabSize));
    const half = [0.5, 0.5, 0, 0];
    const merged = createPlan(source.model, [
      { layer: 0, experts: [0, 2, 3], merge: [half, [0, 0, 1, 0], [0, 0, 0, 1]] },
    ]);
    const { layers } = await repairRouter({ ...source, plan: merged, statistics });
    expect(layers[0]?.exact).toBe(false);
    // Slots that hold one expert each with the coefficient 1 are those experts.
    const plain = createPlan(source.model, [{ layer: 0, experts: [1, 2, 3] }]);
    const identity = createPlan(source.model, [
      {
        layer: 0,
        experts: [1, 2, 3],
        merge: [1, 2, 3].map((e) => [0, 1, 2, 3].map((j) => (j === e ? 1 : 0))),
      },
    ]);
    const [a, b] = await Promise.all(
      [plain, identity].map((plan) => repairRouter({ ...source, plan, statistics })),
    );
    expect(b?.layers).toEqual(a?.layers);
    expect(b?.layers[0]?.exact).toBe(true);
  });

  test("leaves what puts out the same as it is", async () => {
    const source = randomModel({ experts: 4, topK: 2, layers: 2 });
    const statistics = await sampled(source, sequences(6, 8, 7, source.model.vocabSize));
    const plan = createPlan(source.model, [{ layer: 1, experts: [0, 1, 2, 3] }]);
    const { plan: same, layers } = await repairRouter({ ...source, plan, statistics });
    expect(same).toEqual(plan);
    expect(layers.map(({ layer, steps }) => [layer, steps])).toEqual([[1, []]]);
    expect(layers[0]?.before.heldOut).toBeLessThan(1e-9);
  });

  test("refuses what it cannot repair, and says what would help", async () => {
    const source = randomModel({ experts: 4, topK: 2, layers: 1 });
    const { model } = source;
    const statistics = await sampled(source, sequences(6, 8, 8, model.vocabSize));
    const plan = createPlan(model, [{ layer: 0, experts: [0, 1, 2] }]);
    const refused = (options: Partial<Parameters<typeof repairRouter>[0]>, code: string, text: RegExp) =>
      expect(repairRouter({ ...source, plan, statistics, ...options })).rejects.toMatchObject({
        code,
        message: expect.stringMatching(text),
      });
    const { sample: _, ...without } = statistics;
    const bare: Statistics = {
      ...without,
      layers: statistics.layers.map(({ sample: __, ...layer }) => layer),
    };
    await refused({ statistics: bare }, "COPPICE_STATS_MISSING", /logits and inputs and grams/);
    await expect(repairRouter({ ...source, plan, statistics: bare })).rejects.toMatchObject({
      hint: expect.stringMatching(/coppice calibrate --sample .*inputs,grams/),
    });
    await refused({ statistics: { ...statistics, model: "other" } }, "COPPICE_STATS_MODEL", /other/);
    const few = await sampled(source, sequences(1, 8, 8, model.vocabSize));
    await refused({ statistics: few }, "COPPICE_STATS_MISSING", /8 tokens.*at least 32/);
    const map = createPlan(model, [
      {
        layer: 0,
        experts: [0, 1],
        routerMap: [
          [1, 0, 0, 0],
          [0, 1, 0, 0],
        ],
      },
    ]);
    await refused({ plan: map }, "COPPICE_PLAN_INVALID", /layer 0.*router map/);
    await refused({ caution: 2 }, "COPPICE_USAGE", /caution is 2/);
    await refused({ rounds: 0 }, "COPPICE_USAGE", /rounds is 0/);
    const signal = AbortSignal.abort();
    await refused({ signal }, "COPPICE_ABORTED", /repairing the router of layer 0/);
    const llama = randomModel(sampleShapes["scaled-inputs"]);
    const given = await sampled(llama, sequences(6, 8, 9, llama.model.vocabSize));
    const kept = firstLayerPlan(llama, 2);
    await expect(repairRouter({ ...llama, plan: kept, statistics: given })).rejects.toMatchObject({
      code: "COPPICE_FAMILY_UNSUPPORTED",
    });
  });
});

/**
 * A model of four experts of which the first two are the others again, and a sample in which they are never chosen; the plan
 * keeps them, with router rows of their own. A router that does what the model does is known: the rows of the others.
 */
async function twins(random: MemoryModel) {
  const source = random;
  const { index, feedForward } = moeLayers(source.model)[0] as MoeLayer;
  const { router, experts } = feedForward;
  for (const part of ["gate", "up", "down", "gateBias", "upBias", "downBias"] as const) {
    for (const twin of [0, 1]) {
      const [to, from] = [experts[twin]?.[part], experts[twin + 2]?.[part]];
      if (to && from) source.tensors.get(to.name)?.set(source.tensors.get(from.name) as Float32Array);
    }
  }
  const rows = source.tensors.get(router.weight.name) as Float32Array;
  const hidden = source.model.hiddenSize;
  const data = sequences(40, 12, 12, source.model.vocabSize);
  const statistics = await sampled(source, data);
  const { logits } = (statistics.layers[0] as LayerStatistics).sample as LayerSample;
  logits.forEach((_, i) => {
    if (i % 4 < 2) logits[i] = -20;
  });
  const own: LayerPlan = {
    layer: index,
    experts: [0, 1],
    router: {
      weight: packFloats(rows.slice(0, 2 * hidden)),
      ...(router.bias && { bias: [0, 0] }),
      ...(router.correction && { correction: [0, 0] }),
    },
  };
  return { source, statistics, plan: createPlan(source.model, [own]) };
}
