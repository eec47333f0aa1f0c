import { groupsAfter, type MoeModel, moeLayers, type Plan, Rng, type RouterSpec } from "@coppice/core";
import { separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { runSearch } from "@coppice/search";
import { type ExhaustiveOptions, exhaustive } from "@coppice/search-baselines";
import { describe, expect, test } from "vitest";
import { allSubsets, groupedModel, ruggedLandscape } from "./toys.js";

async function search(
  model: MoeModel,
  options: ExhaustiveOptions,
  landscape: (plan: Plan) => number,
  evaluations = 1000,
) {
  const { values } = separableLandscape(model);
  const scores = new Map([["perfect", values]]);
  const context = { model, rng: Rng.fromSeed(1), evaluations, scores };
  const strategy = await exhaustive.create(options, context);
  const executor = toyExecutor(landscape);
  const result = await runSearch({ strategy, model, executor, evaluations });
  return { ...result, plans: executor.evaluated };
}

const planOf = (subsets: readonly (readonly number[])[]) =>
  ({ layers: subsets.map((experts, i) => ({ layer: i + 1, experts })) }) as unknown as Plan;

/** The subset with the highest value, the first of equals. */
const best = (subsets: readonly number[][], worth: (subset: number[]) => number) =>
  subsets.reduce((a, b) => (worth(b) > worth(a) ? b : a));

test("of one layer it is brute force, and ends", async () => {
  const model = toyModel({ layers: 1, experts: 7 });
  for (let seed = 1; seed <= 5; seed++) {
    const landscape = ruggedLandscape(model, seed);
    const expected = best(allSubsets(7, 3), (subset) => landscape(planOf([subset])));
    for (const mode of ["progressive", "independent"] as const) {
      const result = await search(model, { keep: 3, mode }, landscape);
      expect(result).toMatchObject({ evaluations: 35, cacheHits: 0, stopped: "strategy" });
      expect(result.best.candidate.plan.layers[0]?.experts).toEqual(expected);
    }
  }
});

describe("of several layers", () => {
  const model = toyModel({ layers: 3, experts: 5 });
  const whole = [0, 1, 2, 3, 4];
  const subsets = allSubsets(5, 2);

  test.each([1, 2, 3, 4, 5])("the first pass is what the mode says, seed %i", async (seed) => {
    const landscape = ruggedLandscape(model, seed);
    const chosen: Record<string, number[][]> = { progressive: [], independent: [] };
    for (let row = 0; row < 3; row++) {
      const around = (before: number[][], subset: number[]) =>
        planOf([0, 1, 2].map((i) => (i === row ? subset : (before[i] ?? whole))));
      const progressive = chosen["progressive"] as number[][];
      progressive.push(best(subsets, (subset) => landscape(around([...progressive], subset))));
      chosen["independent"]?.push(best(subsets, (subset) => landscape(around([], subset))));
    }
    for (const mode of ["progressive", "independent"] as const) {
      const budget = mode === "progressive" ? 30 : 31;
      const result = await search(model, { keep: 2, mode }, landscape, budget);
      expect(result.evaluations).toBe(budget);
      expect(result.best.candidate.plan.layers.map(({ experts }) => experts)).toEqual(chosen[mode]);
      expect(result.history.filter(({ probe }) => probe)).toHaveLength(mode === "progressive" ? 20 : 30);
    }
  });

  test.each(["progressive", "independent"] as const)(
    "%s: further passes end where no layer alone can be better",
    async (mode) => {
      for (let seed = 1; seed <= 60; seed++) {
        const landscape = ruggedLandscape(model, seed);
        const result = await search(model, { keep: 2, mode }, landscape);
        expect(result.stopped).toBe("strategy");
        const found = result.best.candidate.plan.layers.map(({ experts }) => experts);
        for (let row = 0; row < 3; row++) {
          for (const subset of subsets)
            expect(landscape(planOf(found.with(row, subset)))).toBeLessThanOrEqual(
              result.best.fitness + 1e-12,
            );
        }
        expect(result.cacheHits).toBeLessThanOrEqual(result.evaluations);
      }
    },
  );

  test("start gives undecided layers the experts of a criterion", async () => {
    const landscape = ruggedLandscape(model, 1);
    const { plans, history } = await search(model, { keep: 2, start: "perfect" }, landscape, 30);
    expect(history.every(({ probe }) => !probe)).toBe(true);
    const { values } = separableLandscape(model);
    const recommended = [...(values[2] as Float64Array)]
      .map((value, expert) => ({ value, expert }))
      .sort((a, b) => b.value - a.value)
      .slice(0, 2)
      .map(({ expert }) => expert)
      .sort();
    expect(plans.slice(0, 19).every(({ layers }) => `${layers[2]?.experts}` === `${recommended}`)).toBe(true);
  });
});

test("with groups it tries exactly the subsets with experts of all of them", async () => {
  const model = groupedModel(4, 2);
  const { plans } = await search(model, { keep: 4 }, separableLandscape(model).fitness, 32);
  const [layer] = moeLayers(model);
  const router = layer?.feedForward.router as RouterSpec;
  const valid = allSubsets(8, 4).filter((subset) => {
    try {
      return groupsAfter(router, subset, 1)?.count === 4;
    } catch {
      return false;
    }
  });
  expect(valid).toHaveLength(16);
  const tried = plans.slice(0, valid.length).map(({ layers }) => `${layers[0]?.experts}`);
  expect(tried.sort()).toEqual(valid.map(String).sort());
});

test("nothing to choose: the plan itself", async () => {
  const model = toyModel();
  const result = await search(model, { keep: 6 }, separableLandscape(model).fitness);
  expect(result).toMatchObject({ evaluations: 1, stopped: "strategy" });
});

describe("refuses what it cannot finish, with its numbers", () => {
  const refused = (model: MoeModel, options: ExhaustiveOptions, evaluations: number) =>
    expect(search(model, options, () => 0, evaluations)).rejects;

  test("a budget below one pass", async () => {
    await refused(toyModel(), { keep: 3 }, 59).toMatchObject({
      code: "COPPICE_PLUGIN_OPTIONS",
      message: expect.stringMatching(
        /keep=3 needs 60 plans.*budget of 59.*layer 1 alone has 20 subsets of 3 of its 6/,
      ),
    });
    await refused(toyModel(), { keep: 3, mode: "independent" }, 60).toMatchObject({
      message: expect.stringContaining("needs 61 plans"),
    });
  });

  test("a limit of its own", async () => {
    await refused(toyModel(), { keep: 3, limit: 40 }, 100).toMatchObject({
      message: expect.stringContaining("needs 60 plans, more than limit=40"),
    });
  });

  test("more subsets than could be listed", async () => {
    await refused(toyModel({ experts: 128 }), { keep: 64 }, 1000).toMatchObject({
      message: expect.stringMatching(/2\.39\d*e\+37 subsets of 64 of its 128/),
    });
  });
});
