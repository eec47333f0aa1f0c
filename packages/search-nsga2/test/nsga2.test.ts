import { readFileSync } from "node:fs";
import {
  createPlan,
  groupsAfter,
  type MoeModel,
  modelSize,
  moeLayers,
  type Plan,
  planKey,
  Rng,
} from "@coppice/core";
import { separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { memoryJournal, runSearch, type SearchFront, type SearchOptions } from "@coppice/search";
import { type Nsga2Options, nsga2 } from "@coppice/search-nsga2";
import { describe, expect, test } from "vitest";
import { allSubsets, groupedModel, richLandscape, withRouters } from "./toys.js";

interface Setting extends Partial<SearchOptions> {
  readonly of?: MoeModel;
  readonly landscape?: (plan: Plan) => number;
  readonly seed?: number;
  readonly scores?: ReadonlyMap<string, readonly Float64Array[]>;
}

async function search(options: Nsga2Options, setting: Setting = {}) {
  const { of = toyModel(), seed = 1, evaluations = 200, scores = new Map(), ...run } = setting;
  const { landscape = richLandscape(of, 1) } = setting;
  const context = { model: of, rng: Rng.fromSeed(seed), evaluations, scores };
  const strategy = await nsga2.create(options, context);
  const executor = toyExecutor(landscape);
  const result = await runSearch({ strategy, model: of, executor, evaluations, ...run });
  return { ...result, front: result.front as SearchFront, plans: executor.evaluated };
}

/** Fitness, -bytes, -active parameters. */
const goalsOf = (model: MoeModel, landscape: (plan: Plan) => number, plan: Plan) => {
  const { bytes, activeParameters } = modelSize(model, plan);
  return [landscape(plan), -bytes, -activeParameters];
};

const beats = (a: readonly number[], b: readonly number[]) =>
  a.every((value, i) => value >= (b[i] as number)) && a.some((value, i) => value > (b[i] as number));

/** The front by the definition, one text per point, sorted. */
function bruteFront(model: MoeModel, landscape: (plan: Plan) => number, plans: readonly Plan[]): string[] {
  const all = plans.map((plan) => goalsOf(model, landscape, plan));
  const front = all.filter((a) => !all.some((b) => beats(b, a)));
  return [...new Set(front.map(text))].sort();
}

const text = ([fitness = 0, bytes, active]: readonly number[]) => `${fitness.toFixed(9)} ${bytes} ${active}`;
const frontTexts = ({ points }: SearchFront) =>
  points.map(({ values: [f = 0, b = 0, a = 0] }) => text([f, -b, -a])).sort();

/** Every plan of 2 layers with 4 experts, top-k 1 and 2. */
const small = toyModel({ layers: 2, experts: 4 });
const everyPlan = [1, 2].flatMap((topK) =>
  allSubsets(4, topK).flatMap((first) =>
    allSubsets(4, topK).map((second) =>
      createPlan(small, [
        { layer: 1, experts: first, topK },
        { layer: 2, experts: second, topK },
      ]),
    ),
  ),
);

describe("the front of an enumerable toy", () => {
  test("has 15² + 11² plans", () => {
    expect(new Set(everyPlan.map((plan) => planKey(plan, small))).size).toBe(346);
  });

  test.each([1, 2, 3])("equals brute force once every plan was tried, landscape %i", async (seed) => {
    const landscape = richLandscape(small, seed);
    const result = await search({ keep: 1 }, { of: small, landscape, evaluations: 346 });
    const expected = bruteFront(small, landscape, everyPlan);
    expect(expected.length).toBeGreaterThan(6);
    expect(result.evaluations).toBeGreaterThan(330);
    expect(frontTexts(result.front)).toEqual(expected);
    expect(result.cacheHits).toBe(0);
  });

  test("is that of what was evaluated, whatever was not", async () => {
    const landscape = richLandscape(small, 4);
    const { front, plans } = await search({ keep: 1 }, { of: small, landscape, evaluations: 70 });
    expect(frontTexts(front)).toEqual(bruteFront(small, landscape, plans));
    const sizes = front.points.map(({ values }) => values[1] as number);
    expect(sizes).toEqual([...sizes].sort((a, b) => a - b));
    for (const { plan, values } of front.points) {
      expect(values.map((value, i) => (i === 0 ? value : -value))).toEqual(
        goalsOf(small, landscape, plan).map((value, i) => (i === 0 ? expect.closeTo(value, 12) : value)),
      );
    }
  });
});

/** How much better the best plan of each size could be, on average over the exact front. */
function gap(front: readonly (readonly number[])[], found: readonly (readonly number[])[]): number {
  const gaps = front.map(([fitness = 0, bytes = 0, active = 0]) => {
    const fitting = found.filter(([, b = 0, a = 0]) => b >= bytes && a >= active);
    return fitness - Math.max(0, ...fitting.map(([value = 0]) => value));
  });
  return gaps.reduce((sum, value) => sum + Math.max(0, value), 0) / gaps.length;
}

test("comes near the exact front of 47,367 plans with 400, where random plans do not", async () => {
  const model = toyModel({ layers: 3, experts: 5 });
  const plans = [1, 2].flatMap((topK) => {
    const subsets = allSubsets(5, topK);
    return subsets.flatMap((a) =>
      subsets.flatMap((b) =>
        subsets.map((c) =>
          createPlan(
            model,
            [a, b, c].map((experts, i) => ({ layer: i + 1, experts, topK })),
          ),
        ),
      ),
    );
  });
  expect(plans).toHaveLength(31 ** 3 + 26 ** 3);
  const sized = plans.map((plan) => modelSize(model, plan));
  const means = { search: 0, random: 0 };
  for (const seed of [1, 2, 3, 4]) {
    const landscape = richLandscape(model, seed);
    const goals = plans.map((plan, i) => [
      landscape(plan),
      -(sized[i]?.bytes as number),
      -(sized[i]?.activeParameters as number),
    ]);
    // Plans of one size only compete in fitness.
    const best = new Map<string, number[]>();
    for (const goal of goals) {
      const size = `${goal.slice(1)}`;
      if (!((best.get(size)?.[0] ?? Number.NEGATIVE_INFINITY) >= (goal[0] as number))) best.set(size, goal);
    }
    const front = [...best.values()].filter((a) => ![...best.values()].some((b) => beats(b, a)));
    const result = await search({ keep: 1 }, { of: model, landscape, evaluations: 400, seed });
    const found = result.front.points.map(({ values: [f = 0, b = 0, a = 0] }) => [f, -b, -a]);
    const random = Rng.fromSeed(seed)
      .sample(goals.length, 400)
      .map((i) => goals[i] as number[]);
    means.search += gap(front, found) / 4;
    means.random += gap(front, random) / 4;
  }
  expect(means.search).toBeLessThan(0.4 * means.random);
  expect(means.search).toBeLessThan(0.07);
});

describe("bounds", () => {
  const counts = (plans: readonly Plan[], model = toyModel()) =>
    plans.map((plan) =>
      moeLayers(model).map(
        ({ index, feedForward }) =>
          plan.layers.find(({ layer }) => layer === index)?.experts.length ?? feedForward.experts.length,
      ),
    );
  const topKs = (plans: readonly Plan[]) =>
    new Set(plans.flatMap(({ layers }) => layers.map(({ topK }) => topK ?? 2)));

  test("every layer keeps from keep to most experts, and all numbers occur", async () => {
    const { plans } = await search({ keep: 3, most: 5 });
    expect(new Set(counts(plans).flat())).toEqual(new Set([3, 4, 5]));
    expect(topKs(plans)).toEqual(new Set([1, 2]));
  });

  test("no layer has fewer experts than a token uses", async () => {
    const { plans } = await search({ keep: 1, topK: 4 });
    for (const { layers } of plans)
      for (const { experts, topK = 2 } of layers) expect(experts.length).toBeGreaterThanOrEqual(topK);
    expect(topKs(plans)).toEqual(new Set([1, 2, 3, 4]));
  });

  test("uniform: as many in every layer", async () => {
    const { plans } = await search({ keep: 2, counts: "uniform" });
    for (const layers of counts(plans)) expect(new Set(layers).size).toBe(1);
    expect(new Set(counts(plans).flat())).toEqual(new Set([2, 3, 4, 5, 6]));
  });

  test("SparseMixer keeps its number of experts per token", async () => {
    const of = withRouters(toyModel(), (router, index) =>
      index === 2 ? { ...router, order: "sparsemixer" } : router,
    );
    const { plans } = await search({ keep: 1 }, { of });
    for (const { layers } of plans) {
      const entry = layers.find(({ layer }) => layer === 2);
      expect(entry?.topK).toBeUndefined();
      expect(entry?.experts.length ?? 6).toBeGreaterThanOrEqual(2);
    }
  });

  test("ends when every plan was tried", async () => {
    const of = toyModel({ layers: 1, experts: 4 });
    const result = await search({ keep: 3 }, { of, evaluations: 100 });
    // 4 + 1 subsets, top-k 1 and 2.
    expect(result).toMatchObject({ evaluations: 10, stopped: "strategy", cacheHits: 0 });
  });
});

describe("groups of routers", () => {
  const of = groupedModel(4, 2);
  const layers = moeLayers(of);

  test.each(["layer", "uniform"] as const)("%s: only plans that they can work with", async (counts) => {
    const { plans } = await search({ keep: 2, counts }, { of });
    const left = plans.map((plan) =>
      layers.map(({ index, feedForward: { router, experts } }) => {
        const entry = plan.layers.find(({ layer }) => layer === index);
        const kept = entry?.experts ?? experts.map((_, expert) => expert);
        return groupsAfter({ ...router, topK: entry?.topK ?? router.topK }, kept, index)?.count;
      }),
    );
    if (counts === "uniform") for (const groups of left) expect(new Set(groups).size).toBe(1);
    else expect(left.some((groups) => new Set(groups).size > 1)).toBe(true);
  });

  test("say so when no number of experts fits", async () => {
    const options = { keep: 5, most: 5, counts: "uniform" } as const;
    await expect(search(options, { of })).rejects.toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
      message: expect.stringContaining("no number of experts from 5 to 5"),
    });
  });
});

describe("the first generation", () => {
  const model = toyModel();
  const { values } = separableLandscape(model);
  const scores = new Map([["perfect", values]]);

  test("has the largest plan, those of the criteria at several sizes, and random ones", async () => {
    const { history, plans } = await search({ keep: 2, population: 8 }, { scores, evaluations: 8 });
    expect(history.map(({ origin }) => origin)).toEqual([
      "largest",
      ...new Array(4).fill("seed:perfect"),
      ...new Array(3).fill("random"),
    ]);
    expect(plans[0]?.layers).toEqual([]);
    expect(history.map(({ probe }) => probe)).toEqual([true, ...new Array(7).fill(undefined)]);
    expect(plans.slice(1, 5).map((plan) => plan.layers[0]?.experts.length)).toEqual([2, 3, 4, 5]);
    const best = [...(values[0] as Float64Array)].map((value, expert) => ({ value, expert }));
    const top = best.sort((a, b) => b.value - a.value).slice(0, 2);
    expect(plans[1]?.layers[0]?.experts).toEqual(top.map(({ expert }) => expert).sort());
  });
});

test("stopped anywhere, it ends with the same result and front", async () => {
  const whole = await search({ keep: 2 });
  for (let k = 3; k < 200; k += 61) {
    const journal = memoryJournal();
    const executor = toyExecutor(richLandscape(toyModel(), 1), { fails: (_, done) => done === k });
    await expect(search({ keep: 2 }, { executor, journal })).rejects.toThrow("was stopped");
    const { replayed, plans, ...result } = await search({ keep: 2 }, { journal });
    expect(plans).toHaveLength(200 - replayed);
    const { plans: _, ...expected } = whole;
    expect(result).toEqual({ ...expected, replayed: undefined });
  }
});

test.each([
  ["keep above the experts", { keep: 7 }, "COPPICE_PLAN_KEEP", "6 experts"],
  ["most below top-k", { keep: 1, most: 1, leastTopK: 2 }, "COPPICE_PLAN_KEEP", "top-k=2"],
  ["most below keep", { keep: 3, most: 2 }, "COPPICE_PLUGIN_OPTIONS", "most is 2, less than keep=3"],
  ["leastTopK above topK", { keep: 3, topK: 1, leastTopK: 2 }, "COPPICE_PLUGIN_OPTIONS", "leastTopK is 2"],
  ["a criterion without scores", { keep: 3, seeds: ["reap"] }, "COPPICE_PLUGIN_OPTIONS", "there are none"],
  ["a population of 2", { keep: 3, population: 2 }, "COPPICE_PLUGIN_OPTIONS", "population"],
] as const)("refuses %s", async (_, options, code, text) => {
  await expect(search(options as unknown as Nsga2Options)).rejects.toMatchObject({
    code,
    message: expect.stringContaining(text),
  });
});

test("package.json lists what the package exports", async () => {
  const { coppice } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
  const { kind, pluginName, contract, summary } = nsga2;
  expect(coppice.plugins).toEqual([{ kind, name: pluginName, contract, summary, export: "nsga2" }]);
});
