import { readFileSync } from "node:fs";
import { createPlan, type MoeModel, type Plan, Rng } from "@coppice/core";
import { separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { memoryJournal, runSearch, type SearchOptions } from "@coppice/search";
import { type CmaEsOptions, cmaEs } from "@coppice/search-cma-es";
import { describe, expect, test } from "vitest";

const model = toyModel();
const { fitness, values, optimum } = separableLandscape(model);
const scores = new Map([
  ["worst", values.map((row) => row.map((value) => -value))],
  ["perfect", values],
]);

interface Setting extends Partial<SearchOptions> {
  readonly of?: MoeModel;
  readonly landscape?: (plan: Plan) => number;
  readonly seeds?: typeof scores;
  readonly seed?: number;
}

async function search(options: CmaEsOptions, setting: Setting = {}) {
  const { of = model, landscape = fitness, seeds = scores, seed = 1, evaluations = 200, ...run } = setting;
  const context = { model: of, rng: Rng.fromSeed(seed), evaluations, scores: seeds };
  const strategy = await cmaEs.create(options, context);
  const executor = toyExecutor(landscape);
  const result = await runSearch({ strategy, model: of, executor, evaluations, ...run });
  return { ...result, plans: executor.evaluated };
}

/** Distance of merge coefficients from a target, for a model of one layer with 2 of 2 experts. */
const target = [
  [0.8, 0.3],
  [-0.2, 0.9],
];
const small = toyModel({ layers: 1, experts: 2 });
const deviations = ({ layers }: Plan) => {
  const rows = layers[0]?.merge ?? [
    [1, 0],
    [0, 1],
  ];
  return rows.flatMap((row, i) => row.map((value, j) => value - (target[i]?.[j] as number)));
};
const bowl = (plan: Plan) => -deviations(plan).reduce((sum, value) => sum + value ** 2, 0);

describe("on toy models", () => {
  test("finds merge coefficients that are known, to the last decimals of a plan", async () => {
    const { best } = await search(
      { keep: 2 },
      { of: small, landscape: bowl, seeds: new Map(), evaluations: 1000 },
    );
    expect(Math.max(...deviations(best.candidate.plan).map(Math.abs))).toBeLessThan(2e-5);
  });

  test("improves on the best subset where merging pays", async () => {
    const { best, history } = await search({ keep: 3, start: "perfect" }, { evaluations: 600 });
    expect(history[0]).toMatchObject({ phase: "prune", origin: "seed:perfect" });
    expect(history[0]?.fitness).toBeCloseTo(optimum(3), 12);
    // The optimum of the landscape moves every coefficient by the value of its expert.
    const gains = values.map((worth) => worth.reduce((sum, value) => sum + value ** 2 / 2, 0));
    const most = optimum(3) + gains.reduce((sum, gain) => sum + gain, 0) / gains.length;
    expect(best.fitness).toBeGreaterThan(optimum(3) + 0.8 * (most - optimum(3)));
    expect(best.candidate.plan.layers.map(({ experts }) => experts.length)).toEqual([3, 3, 3]);
  });

  test("merges the best of the plans that the criteria recommend", async () => {
    const { history, plans } = await search({ keep: 3 }, { evaluations: 40 });
    expect(history.slice(0, 2).map(({ origin }) => origin)).toEqual(["seed:worst", "seed:perfect"]);
    const experts = plans[1]?.layers.map(({ experts }) => experts);
    for (const plan of plans.slice(2)) expect(plan.layers.map(({ experts }) => experts)).toEqual(experts);
  });

  test("begins with the merges of a given plan and leaves what it does not list", async () => {
    const merge = [
      [0.5, 0.5, 0, 0, 0, 0],
      [0, 0, 1, 0, 0, 0],
    ];
    const plan = createPlan(model, [{ layer: 2, experts: [0, 2], topK: 1, merge }]);
    const { plans } = await search({ plan, sigma: 1e-3 }, { evaluations: 30 });
    expect(plans[0]).toEqual(plan);
    for (const { layers } of plans) {
      expect(layers.map(({ layer, experts, topK }) => ({ layer, experts, topK }))).toEqual([
        { layer: 2, experts: [0, 2], topK: 1 },
      ]);
      layers[0]?.merge?.forEach((row, i) => {
        row.forEach((value, j) => {
          expect(Math.abs(value - (merge[i]?.[j] as number))).toBeLessThan(0.01);
        });
      });
    }
  });

  test("keeps every coefficient within the bound", async () => {
    const greedy = (plan: Plan) => plan.layers.reduce((sum, { merge }) => sum + (merge?.[0]?.[0] ?? 0), 0);
    const { plans, best } = await search(
      { keep: 3, bound: 0.3, sigma: 0.2 },
      { landscape: greedy, evaluations: 400 },
    );
    let least = 0;
    for (const { layers } of plans) {
      for (const { experts, merge } of layers) {
        merge?.forEach((row, slot) => {
          row.forEach((value, j) => {
            const deviation = Math.abs(value - (j === experts[slot] ? 1 : 0));
            expect(deviation).toBeLessThanOrEqual(0.3 + 1e-6);
            least = Math.max(least, deviation);
          });
        });
      }
    }
    expect(least).toBeGreaterThan(0.29);
    expect(best.fitness).toBeGreaterThan(0.8);
  });
});

describe("restarts", () => {
  const populations = (history: Awaited<ReturnType<typeof search>>["history"]) => [
    ...new Set(history.flatMap(({ origin }) => /^sample of (\d+)$/.exec(origin)?.[1] ?? []).map(Number)),
  ];

  test("double the population, and end when the budget allows no more", async () => {
    const setting = { of: small, landscape: bowl, seeds: new Map(), evaluations: 3000 };
    const { history, stopped, evaluations } = await search({ keep: 2 }, setting);
    const found = populations(history);
    expect(found[0]).toBe(8);
    expect(found.length).toBeGreaterThan(1);
    found.slice(1).forEach((size, i) => {
      expect(size).toBe(2 * (found[i] as number));
    });
    expect(evaluations).toBeLessThanOrEqual(3000);
    if (stopped === "strategy") expect(3000 - evaluations).toBeLessThan(10 * 2 * (found.at(-1) as number));
  });

  test("find the best of many optima more often than one run", async () => {
    const rastrigin = (plan: Plan) =>
      -deviations(plan).reduce((sum, value) => {
        const x = 4 * value;
        return sum + x ** 2 + 3 * (1 - Math.cos(2 * Math.PI * x));
      }, 0);
    let once = 0;
    let again = 0;
    for (let seed = 1; seed <= 8; seed++) {
      const setting = { of: small, landscape: rastrigin, seeds: new Map(), seed, evaluations: 4000 };
      const { history, best } = await search({ keep: 2, sigma: 0.3 }, setting);
      const first = history.filter(({ origin }) => origin === "sample of 8");
      if (Math.max(...first.map(({ fitness }) => fitness as number)) > -0.5) once++;
      if (best.fitness > -0.5) again++;
    }
    expect(again).toBeGreaterThan(once + 2);
    expect(again).toBeGreaterThanOrEqual(5);
  });
});

test("stopped anywhere, it ends with the same result", async () => {
  const whole = await search({ keep: 3 });
  for (let k = 3; k < 200; k += 61) {
    const journal = memoryJournal();
    const dying = toyExecutor(fitness, { fails: (_, done) => done === k });
    await expect(search({ keep: 3 }, { executor: dying, journal })).rejects.toThrow("was stopped");
    const { replayed, plans, ...result } = await search({ keep: 3 }, { journal });
    expect(plans).toHaveLength(200 - replayed);
    const { plans: _, ...expected } = whole;
    expect(result).toEqual({ ...expected, replayed: undefined });
  }
});

describe("refuses", () => {
  const plan = createPlan(model, [{ layer: 1, experts: [0, 1, 2] }]);
  const far = createPlan(model, [
    {
      layer: 1,
      experts: [0, 1],
      merge: [
        [3, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
      ],
    },
  ]);
  test.each([
    ["neither keep nor plan", {}, "COPPICE_PLUGIN_OPTIONS", "neither keep nor plan"],
    ["both start and plan", { plan, start: "perfect" }, "COPPICE_PLUGIN_OPTIONS", "both start and plan"],
    [
      "a plan that keeps another number",
      { plan, keep: 4 },
      "COPPICE_PLUGIN_OPTIONS",
      "keep is 4, the plan keeps 3",
    ],
    ["a plan of another top-k", { plan, topK: 1 }, "COPPICE_PLUGIN_OPTIONS", "topK is 1, the plan has 2"],
    ["a plan of no layers", { plan: createPlan(model) }, "COPPICE_PLUGIN_OPTIONS", "lists no layer"],
    ["a plan beyond the bound", { plan: far }, "COPPICE_PLUGIN_OPTIONS", "coefficient of 3 in layer 1"],
    ["a plan of another model", { plan: createPlan(small) }, "COPPICE_PLAN_MODEL", "toy-1x2"],
    ["no plan at all", { plan: 7 }, "COPPICE_PLAN_INVALID", "expected an object"],
    ["a criterion without scores", { keep: 3, start: "reap" }, "COPPICE_PLUGIN_OPTIONS", "worst, perfect"],
    ["keep below top-k", { keep: 1 }, "COPPICE_PLAN_KEEP", "top-k=2"],
    ["a bound of 0", { keep: 3, bound: 0 }, "COPPICE_PLUGIN_OPTIONS", "bound"],
    ["a population of 3", { keep: 3, population: 3 }, "COPPICE_PLUGIN_OPTIONS", "population"],
  ] as const)("%s", async (_, options, code, text) => {
    await expect(search(options as CmaEsOptions)).rejects.toMatchObject({
      code,
      message: expect.stringContaining(text),
    });
  });

  test("more coefficients than fit into memory", async () => {
    const huge = toyModel({ layers: 40, experts: 128 });
    await expect(search({ keep: 64 }, { of: huge, seeds: new Map() })).rejects.toMatchObject({
      message: expect.stringContaining("327680 merge coefficients"),
    });
  });
});

test("package.json lists what the package exports", async () => {
  const { coppice } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
  const { kind, pluginName, contract, summary } = cmaEs;
  expect(coppice.plugins).toEqual([{ kind, name: pluginName, contract, summary, export: "cmaEs" }]);
});
