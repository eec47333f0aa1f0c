import { reference } from "@coppice/backend-reference";
import { createPlan, moeLayers, type Plan, Rng, RunEmitter, type Runner } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { type FitText, type Fold, reconstruct } from "@coppice/reconstruct";
import { beforeAll, describe, expect, test } from "vitest";

const source = randomModel({ layers: 3, experts: 4 });
const { model } = source;
const pruned = createPlan(
  model,
  moeLayers(model).map(({ index }) => ({ layer: index, experts: [0, 2] })),
);

function randomTexts(seed: number, count: number): FitText[] {
  const rng = Rng.fromSeed(seed);
  return Array.from({ length: count }, () => ({
    ids: Int32Array.from({ length: 12 }, () => rng.integer(model.vocabSize)),
  }));
}

const texts = randomTexts(1, 20);
const others = randomTexts(2, 10);
let runner: Runner;
beforeAll(async () => {
  runner = await (await reference.create({}, undefined)).load({ model, weights: source.weights });
});

/** Minus the mean squared error of what enters the head. */
async function closeness(plan: Plan, judged: readonly FitText[]): Promise<number> {
  const request = { sequences: judged.map(({ ids }) => ids), boundaries: [model.layers.length] };
  const last = async (own?: Plan) => {
    const { boundaries } = await runner.run({ ...request, ...(own && { plan: own }) });
    return boundaries.get(model.layers.length) as Float32Array;
  };
  const [whole, under] = [await last(), await last(plan)];
  return -whole.reduce((sum, value, i) => sum + (value - (under[i] as number)) ** 2, 0) / whole.length;
}

const foldOf = (fitted: readonly FitText[], judged: readonly FitText[]): Fold => ({
  texts: fitted,
  score: async (plans) => {
    const scores: number[] = [];
    for (const plan of plans) scores.push(await closeness(plan, judged));
    return scores;
  },
});

describe("reconstruct", () => {
  test("brings a pruned model nearer to the whole one, on texts that it has not seen too", async () => {
    const emitter = new RunEmitter();
    const done: number[] = [];
    emitter.on("progress", (progress) => done.push(progress.done / progress.total));
    const found = await reconstruct({ runner, plan: pruned, folds: [foldOf(texts, others)], emitter });
    expect(found.before).toBeCloseTo(await closeness(pruned, others), 8);
    expect(await closeness(found.plan, others)).toBeGreaterThan(found.before);
    expect(await closeness(found.plan, texts)).toBeGreaterThan(await closeness(pruned, texts));
    expect(found.layers.at(-1)?.score).toBeCloseTo(await closeness(found.plan, others), 8);
    expect(found.foldPlans).toEqual([found.plan]);
    expect(found.layers.map(({ layer }) => layer)).toEqual(pruned.layers.map(({ layer }) => layer));
    expect(found.plan.layers.map(({ experts }) => experts)).toEqual(
      pruned.layers.map(({ experts }) => experts),
    );
    expect(found.tokenLayers).toBeGreaterThan(0);
    // Both grids.
    expect(done).toEqual([1, 2, 3, 4, 5, 6].map((layer) => layer / 6));
  });

  test("undoes a change of down projections", async () => {
    const experts = [0, 1, 2, 3];
    const width = moeLayers(model)[0]?.feedForward.experts[0]?.width as number;
    const to = Array.from({ length: width }, (_, unit) => unit);
    const halved = createPlan(
      model,
      moeLayers(model).map(({ index }) => ({
        layer: index,
        experts,
        units: experts.map((expert) => [{ expert, to, rows: 1, columns: 0.5 }]),
      })),
    );
    const grids = [[{ target: "layer", ridge: 1e-6 }]] as const;
    const many = randomTexts(3, 60);
    const { plan, before } = await reconstruct({
      runner,
      plan: halved,
      folds: [foldOf(many, others)],
      grids,
    });
    // What is left is rounding to bfloat16.
    expect(await closeness(plan, others)).toBeGreaterThan(before * 1e-4);
  });

  test("leaves layers alone where no fit scores better", async () => {
    const fold = { texts, score: async (plans: readonly Plan[]) => plans.map(() => 0) };
    const found = await reconstruct({ runner, plan: pruned, folds: [fold] });
    expect(found.plan).toEqual(pruned);
    expect(found.layers.map(({ choice }) => choice)).toEqual([null, null, null]);
    const broken = {
      texts,
      score: async (plans: readonly Plan[]) => plans.map((plan) => (plan === pruned ? 0 : Number.NaN)),
    };
    expect(
      (await reconstruct({ runner, plan: pruned, folds: [broken, fold] })).plan.layers[0]?.down,
    ).toBeUndefined();
  });

  test("takes the choice that the folds agree on, and fits it to all texts", async () => {
    const folds = [foldOf(texts.slice(0, 10), texts.slice(10)), foldOf(texts.slice(10), texts.slice(0, 10))];
    const found = await reconstruct({ runner, plan: pruned, folds });
    const choices = found.layers.map(({ choice }) => choice);
    expect(choices.some((choice) => choice !== null)).toBe(true);
    // The same choices without a word from anybody.
    const [first] = choices;
    if (first) {
      const alone = await reconstruct({
        runner,
        plan: createPlan(model, pruned.layers.slice(0, 1)),
        folds: [{ texts, score: async (plans) => plans.map(() => 0) }],
        grids: [[first]],
      });
      expect(found.plan.layers[0]).toEqual(alone.plan.layers[0]);
    }
    expect(await closeness(found.plan, others)).toBeGreaterThan(await closeness(pruned, others));
    // The last score is of the folds' own plans, each on the texts of the other.
    const [one, two] = found.foldPlans as [Plan, Plan];
    const crossed = (await closeness(one, texts.slice(10))) + (await closeness(two, texts.slice(0, 10)));
    expect(found.layers.at(-1)?.score).toBeCloseTo(crossed / 2, 8);
  });

  test("keeps the grid that ends best, though another was ahead before", async () => {
    const close = { target: "layer", ridge: 0.01 } as const;
    const loose = { target: "layer", ridge: 3 } as const;
    const course = [0, 5, 6, 1, 0, 2, 3, 4];
    const score = async (plans: readonly Plan[]) => plans.map(() => course.shift() ?? Number.NaN);
    const found = await reconstruct({
      runner,
      plan: pruned,
      folds: [{ texts, score }],
      grids: [[close], [loose]],
    });
    expect(found.layers.map(({ choice, score }) => [choice, score])).toEqual([
      [loose, 2],
      [loose, 3],
      [loose, 4],
    ]);
    const alone = { runner, plan: pruned, folds: [foldOf(texts, others)] };
    const loosely = await reconstruct({ ...alone, grids: [[loose]] });
    expect(found.plan).toEqual(loosely.plan);
    expect(found.tokenLayers).toBe(2 * loosely.tokenLayers);
  });

  test("refuses what it cannot fit, and stops when told", async () => {
    const folds = [foldOf(texts, others)];
    const [layer] = pruned.layers;
    const map = [
      [1, 0, 0, 0],
      [0, 0, 1, 0],
    ];
    const mapped = createPlan(model, [{ ...layer, layer: 0, experts: [0, 2], routerMap: map }]);
    await expect(reconstruct({ runner, plan: mapped, folds })).rejects.toMatchObject({
      code: "COPPICE_PLAN_INVALID",
    });
    await expect(reconstruct({ runner, plan: pruned, folds: [] })).rejects.toMatchObject({
      code: "COPPICE_USAGE",
    });
    for (const grids of [[[{ target: "layer", ridge: 0 }]], [], [[null], []]] as const) {
      await expect(reconstruct({ runner, plan: pruned, folds, grids })).rejects.toMatchObject({
        code: "COPPICE_USAGE",
      });
    }
    const signal = AbortSignal.abort();
    await expect(reconstruct({ runner, plan: pruned, folds, signal })).rejects.toMatchObject({
      code: "COPPICE_ABORTED",
    });
  });
});
