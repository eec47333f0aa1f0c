import { type FitSkippingOptions, type FittedSkipping, fitSkipping } from "@coppice/allocate";
import {
  createPlan,
  type LayerPlan,
  moeLayers,
  type Plan,
  packFloats,
  parsePlan,
  type Statistics,
  skipped,
} from "@coppice/core";
import { type MemoryModel, randomModel, sampleShapes, slowForward } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { sampled, sequences } from "./sample.js";

/** What the first MoE layer does with every token, from the whole model in float64. */
function firstLayer(source: MemoryModel, data: readonly Int32Array[], plan?: Plan) {
  return data.flatMap((ids) => slowForward(source, [...ids], plan).layers[0]?.choices ?? []);
}

const ran = (choices: ReturnType<typeof firstLayer>) =>
  choices.reduce((sum, chosen) => sum + chosen.filter(({ slot }) => slot !== skipped).length, 0) /
  choices.length;

/** Routers that divide by no norm show what rules look at; the others show the same ratios. */
const shapes = [
  ["softmax-topk", { experts: 8, topK: 3, layers: 2 }],
  ["many-experts", sampleShapes["many-experts"]],
  ["groups", sampleShapes["latent-attention"]],
  ["corrected groups", sampleShapes["low-rank-queries"]],
  ["sigmoid-topk", sampleShapes["sigmoid-scores"]],
  ["corrected softmax", sampleShapes["corrected-softmax"]],
  ["sparsemixer", sampleShapes.sparsemixer],
  ["topk-softmax", sampleShapes.multipliers],
] as const;

describe("fitSkipping", () => {
  test.each(shapes)("expects of %s what the model does, by every rule", async (name, shape) => {
    const source = randomModel(shape);
    const data = sequences(5, 10, 2, source.model.vocabSize);
    const statistics = await sampled(source, data);
    const whole = firstLayer(source, data);
    const { topK } = moeLayers(source.model)[0]?.feedForward.router ?? { topK: 0 };
    const ratios = whole.flatMap((chosen) => {
      const gates = chosen.map(({ gate }) => gate).sort((a, b) => b - a);
      return gates.slice(1).map((gate) => gate / (gates[0] as number));
    });
    ratios.sort((a, b) => a - b);
    const middle =
      ((ratios[(ratios.length - 1) >> 1] as number) + (ratios[ratios.length >> 1] as number)) / 2;
    const fit = (options: Partial<FitSkippingOptions>) =>
      fitSkipping({ ...source, statistics, preset: "naee", ...options });
    const check = (found: FittedSkipping) => {
      expect(parsePlan(JSON.parse(JSON.stringify(found.plan)), source.model)).toEqual(found.plan);
      const [first] = found.layers;
      expect(first?.average).toBeCloseTo(ran(firstLayer(source, data, alone(found.plan))), 9);
      const mean = found.layers.reduce((sum, { average }) => sum + average, 0) / found.layers.length;
      expect(found.average).toBeCloseTo(mean, 12);
      return first;
    };
    const naee = check(await fit({}));
    expect(naee?.skip?.rule).toBe("ratio");
    expect(naee?.skip?.threshold).toBeCloseTo(middle, 5);
    for (const preset of ["ratio", "top-p"] as const) {
      for (const share of [0, 0.4]) {
        const target = 1 + share * (topK - 1);
        const first = check(await fit({ preset, target }));
        expect(first?.skip?.rule).toBe(preset);
        // As near as whole choices of 50 tokens come. Many gate weights of sparsemixer are 1, and equal ones are on one side.
        if (name !== "sparsemixer") expect(Math.abs((first?.average as number) - target)).toBeLessThan(0.011);
      }
      const all = await fit({ preset, target: topK });
      expect(all.layers.every(({ skip, average }) => skip === undefined && average === topK)).toBe(true);
    }
  });

  test("skips by odp in the layers that change least", async () => {
    const source = randomModel({ experts: 6, topK: 2, layers: 4, seed: 8 });
    const data = sequences(5, 10, 3, source.model.vocabSize);
    const statistics = await sampled(source, data);
    const options = { ...source, statistics, preset: "odp" } as const;
    const naee = await fitSkipping({ ...source, statistics, preset: "naee" });
    const found = await fitSkipping({ ...options, layers: 2 });
    const order = found.layers.toSorted((a, b) => (a.sensitivity ?? 0) - (b.sensitivity ?? 0));
    order.forEach(({ skip, layer, average }, rank) => {
      const median = naee.layers.find((other) => other.layer === layer)?.skip;
      expect(skip).toEqual(rank < 2 ? { ...median, spare: 0.02 } : undefined);
      if (rank >= 2) expect(average).toBe(2);
    });
    // Sensitivity of the first layer from the experts' outputs, Σ ‖y - y'‖² / Σ ‖y‖².
    const added = (choices: ReturnType<typeof firstLayer>) =>
      choices.flatMap((chosen) =>
        Array.from({ length: source.model.hiddenSize }, (_, h) =>
          chosen.reduce((sum, { gate, output }) => sum + gate * (output[h] as number), 0),
        ),
      );
    const [whole, less] = [
      added(firstLayer(source, data)),
      added(firstLayer(source, data, alone(naee.plan))),
    ];
    const squares = (values: number[]) => values.reduce((sum, value) => sum + value * value, 0);
    const expected = squares(whole.map((value, i) => value - (less[i] as number))) / squares(whole);
    expect(found.layers[0]?.sensitivity).toBeCloseTo(expected, 5);
    // One of four layers by default; the caller's sensitivities decide.
    const given = await fitSkipping({ ...options, sensitivities: [3, 1, 2, 4], spare: 0 });
    expect(given.layers.map(({ skip }) => skip !== undefined)).toEqual([false, true, false, false]);
    expect(given.layers[1]?.skip).toEqual(naee.layers[1]?.skip);
  });

  test("fits under a plan: fewer experts, another top-k, other router rows", async () => {
    const source = randomModel({ experts: 6, topK: 3, layers: 1, seed: 9 });
    const data = sequences(5, 10, 4, source.model.vocabSize);
    const statistics = await sampled(source, data);
    const hidden = source.model.hiddenSize;
    const rows = Float32Array.from({ length: 4 * hidden }, (_, i) => Math.sin(i));
    const layers: LayerPlan[] = [
      { layer: 0, experts: [0, 2, 3, 5] },
      { layer: 0, experts: [5, 0, 2, 3], topK: 2 },
      { layer: 0, experts: [0, 2, 3, 5], router: { weight: packFloats(rows) } },
      { layer: 0, experts: [0, 2, 3, 5], skip: { rule: "top-p", threshold: 0.1 } },
    ];
    for (const layer of layers) {
      const plan = createPlan(source.model, [layer]);
      const found = await fitSkipping({ ...source, statistics, plan, preset: "ratio", target: 1.5 });
      const [own] = found.plan.layers;
      expect(own).toEqual({ ...layer, skip: found.layers[0]?.skip });
      expect(found.average).toBeCloseTo(ran(firstLayer(source, data, found.plan)), 9);
      expect(Math.abs(found.average - 1.5)).toBeLessThan(0.011);
    }
  });

  test("leaves layers alone that run one expert, and replaces a rule that the model brings along", async () => {
    const source = randomModel({ experts: 4, topK: 1, layers: 1 });
    const statistics = await sampled(source, sequences(4, 8, 5, source.model.vocabSize));
    const one = await fitSkipping({ ...source, statistics, preset: "naee" });
    expect(one.layers).toEqual([{ layer: 0, topK: 1, average: 1 }]);
    expect(one.plan.layers[0]).not.toHaveProperty("skip");

    const two = randomModel({ experts: 4, topK: 2, layers: 1 });
    const own = { rule: "ratio", threshold: 0.9 } as const;
    const layersWithRule = two.model.layers.map((layer) => {
      const { feedForward } = layer;
      if (feedForward.kind !== "moe") return layer;
      return { ...layer, feedForward: { ...feedForward, router: { ...feedForward.router, skip: own } } };
    });
    const bringing = { ...two, model: { ...two.model, layers: layersWithRule } };
    const given = await sampled(two, sequences(4, 8, 5, two.model.vocabSize));
    const all = await fitSkipping({ ...bringing, statistics: given, preset: "ratio", target: 2 });
    expect(all.average).toBe(2);
    expect(all.plan.layers[0]?.skip).toEqual({ rule: "ratio", threshold: 0 });
  });

  test("refuses what makes no sense, and says what would help", async () => {
    const source = randomModel({ experts: 4, topK: 2, layers: 2 });
    const { model } = source;
    const statistics = await sampled(source, sequences(4, 8, 6, model.vocabSize), ["logits"]);
    const refused = (options: Partial<FitSkippingOptions>, code: string, text: RegExp) =>
      expect(fitSkipping({ ...source, statistics, preset: "naee", ...options })).rejects.toMatchObject({
        code,
        message: expect.stringMatching(text),
      });
    await refused({ preset: "ratio" }, "COPPICE_USAGE", /ratio needs the average/);
    await refused({ preset: "top-p", target: 0.5 }, "COPPICE_USAGE", /at least 1; it is 0.5/);
    await refused({ preset: "top-p", target: 2.5 }, "COPPICE_USAGE", /2.5.*top-k of 2 of layer 0/);
    await refused({ target: 1.5 }, "COPPICE_USAGE", /naee takes medians/);
    await refused({ spare: 1.5 }, "COPPICE_USAGE", /spare is 1.5/);
    await refused({ layers: 1 }, "COPPICE_USAGE", /naee skips in all layers/);
    await refused({ preset: "odp", layers: 0 }, "COPPICE_USAGE", /0 layers/);
    await refused({ preset: "odp", sensitivities: [1] }, "COPPICE_USAGE", /1 values, expected 2/);
    await refused({ preset: "odp" }, "COPPICE_STATS_MISSING", /grams/);
    const { sample: _, ...without } = statistics;
    const bare: Statistics = { ...without, layers: statistics.layers.map(({ sample: __, ...rest }) => rest) };
    await refused({ statistics: bare }, "COPPICE_STATS_MISSING", /skipping by naee needs a sample/);
    await expect(fitSkipping({ ...source, statistics: bare, preset: "naee" })).rejects.toMatchObject({
      hint: expect.stringMatching(/coppice calibrate --sample logits/),
    });
    const map = [
      [1, 0, 0, 0],
      [0, 1, 0, 0],
    ];
    const mapped = createPlan(model, [{ layer: 1, experts: [0, 1], routerMap: map }]);
    await refused({ plan: mapped }, "COPPICE_PLAN_INVALID", /layer 1.*router map/);
    await refused({ signal: AbortSignal.abort() }, "COPPICE_ABORTED", /sample of layer 0/);
  });
});

/** The plan of the first layer of a plan. */
function alone(plan: Plan): Plan {
  return { ...plan, layers: plan.layers.slice(0, 1) };
}
