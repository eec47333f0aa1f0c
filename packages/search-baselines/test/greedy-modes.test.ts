import { groupsAfter, type MoeModel, moeLayers, type Plan, Rng } from "@coppice/core";
import { separableLandscape, toyExecutor, toyModel } from "@coppice/plugin-kit";
import { runSearch } from "@coppice/search";
import { type GreedyOptions, greedy } from "@coppice/search-baselines";
import { describe, expect, test } from "vitest";
import { allSubsets, groupedModel, ruggedLandscape } from "./toys.js";

const model = toyModel();
const { fitness, values, optimum } = separableLandscape(model);
const scores = new Map([
  ["perfect", values],
  ["worst", values.map((row) => row.map((value) => -value))],
]);

interface Setting {
  readonly of?: MoeModel;
  readonly landscape?: (plan: Plan) => number;
  readonly evaluations?: number;
  readonly seed?: number;
}

async function search(options: GreedyOptions, setting: Setting = {}) {
  const { of = model, landscape = fitness, evaluations = 200, seed = 1 } = setting;
  const context = {
    model: of,
    rng: Rng.fromSeed(seed),
    evaluations,
    scores: of === model ? scores : new Map(),
  };
  const strategy = await greedy.create(options, context);
  const executor = toyExecutor(landscape);
  const result = await runSearch({ strategy, model: of, executor, evaluations });
  return { ...result, plans: executor.evaluated };
}

/** Experts of the first plan that is a result, layer by layer. */
const firstResult = ({ history, plans }: Awaited<ReturnType<typeof search>>) => {
  const at = history.findIndex(({ probe }) => !probe);
  return plans[at]?.layers.map(({ experts }) => experts);
};

describe.each([
  ["backward", 3, 6 + 5 + 4],
  ["forward", 4, 4 + 3],
] as const)("%s", (mode, keep, perLayer) => {
  test("takes one plan per expert and step, and backward finds the optimum of a separable landscape", async () => {
    const { history } = await search({ keep, mode });
    const steps = history.filter(({ origin }) => origin === mode);
    expect(steps).toHaveLength(3 * perLayer);
    if (mode === "forward") return;
    const results = steps.filter(({ probe }) => !probe);
    expect(Math.max(...results.map(({ fitness }) => fitness as number))).toBeCloseTo(optimum(keep), 12);
  });

  test("goes on by swaps from there", async () => {
    const { best, history } = await search({ keep, mode }, { evaluations: 300 });
    expect(best.fitness).toBeCloseTo(optimum(keep), 12);
    expect(history.some(({ origin }) => origin === "swap")).toBe(true);
    expect(history.slice(0, 3 * perLayer).some(({ origin }) => origin === "swap")).toBe(false);
  });

  test.each([1, 2, 5, 20, 40])("always gets a result out of %i evaluations", async (evaluations) => {
    const { best } = await search({ keep, mode }, { evaluations });
    expect(best.candidate.plan.layers.every(({ experts }) => experts.length === keep)).toBe(true);
  });

  test("with width 1 takes the criterion's word", async () => {
    const run = await search({ keep, mode, width: 1, start: "perfect" });
    expect(run.history[0]).toMatchObject({ origin: mode });
    expect(run.history[0]?.fitness).toBeCloseTo(optimum(keep), 12);
  });

  test("compares the experts that the criterion ranks nearest", async () => {
    const { plans, history } = await search({ keep, mode, width: 2, start: "worst" });
    const [a, b] = plans;
    // The first layer that was visited is the one that differs from its start.
    const row = a?.layers.findIndex(
      ({ experts }, i) => `${experts}` !== `${b?.layers[i]?.experts}`,
    ) as number;
    const worth = [...(values[row] as Float64Array)].map((value, expert) => ({ value, expert }));
    const ranked = worth.sort((x, y) => y.value - x.value).map(({ expert }) => expert);
    const moved = [a, b].map((plan) => {
      const kept = plan?.layers[row]?.experts as readonly number[];
      return ranked.filter((expert) => kept.includes(expert) === (mode === "forward"));
    });
    // "worst" drops the best experts first, and adds them last: after the two that it starts from.
    const expected = mode === "backward" ? ranked.slice(0, 2) : [...ranked].reverse().slice(2, 4);
    expect(moved.map((experts) => experts.find((expert) => expected.includes(expert))).sort()).toEqual(
      [...expected].sort(),
    );
    expect(history.filter(({ origin }) => origin === mode).length).toBeLessThanOrEqual(3 * 2 * 3);
  });
});

test("backward elimination of one layer is the textbook's", async () => {
  for (let seed = 1; seed <= 10; seed++) {
    const one = toyModel({ layers: 1, experts: 7 });
    const landscape = ruggedLandscape(one, seed);
    const worth = (experts: readonly number[]) =>
      landscape({ layers: [{ layer: 1, experts }] } as unknown as Plan);
    let kept = [0, 1, 2, 3, 4, 5, 6];
    while (kept.length > 3) {
      const ways = kept.map((out) => kept.filter((expert) => expert !== out));
      kept = ways.reduce((a, b) => (worth(b) > worth(a) ? b : a));
    }
    const run = await search(
      { keep: 3, mode: "backward" },
      { of: one, landscape, evaluations: 7 + 6 + 5 + 4 },
    );
    expect(run.best.candidate.plan.layers[0]?.experts).toEqual(kept);
    expect(run.best.fitness).toBeCloseTo(worth(kept), 12);
  }
});

describe("groups of a router", () => {
  const shapes = [
    ["2 of 1, 4 of 8", groupedModel(2, 1), 4],
    ["4 of 2, 4 of 8", groupedModel(4, 2), 4],
    ["4 of 2 by the best two, 8 of 16", groupedModel(4, 2, 16, "top2"), 8],
  ] as const;

  describe.each(shapes)("%s", (_, of, keep) => {
    /** True where the router can work with the experts, and all its groups are left. */
    const fits = (row: number, experts: readonly number[]) => {
      const layer = moeLayers(of)[row] as ReturnType<typeof moeLayers>[number];
      const { router } = layer.feedForward;
      try {
        return groupsAfter(router, experts, layer.index)?.count === router.groups?.count;
      } catch {
        return false;
      }
    };
    test.each(["swap", "backward", "forward"] as const)("%s proposes only plans that fit", async (mode) => {
      const { plans } = await search({ keep, mode }, { of, landscape: ruggedLandscape(of, 3) });
      expect(plans.length).toBeGreaterThan(10);
      for (const { layers } of plans)
        layers.forEach(({ experts }, row) => {
          expect(fits(row, experts)).toBe(true);
        });
    });

    test("swap reaches every subset: it finds the optimum", async () => {
      if (keep > 4) return;
      const landscape = separableLandscape(of);
      const best = landscape.values.map((worth, row) =>
        Math.max(
          ...allSubsets(worth.length, keep)
            .filter((subset) => fits(row, subset))
            .map((subset) => subset.reduce((sum, expert) => sum + (worth[expert] as number), 0) / keep),
        ),
      );
      const run = await search({ keep }, { of, landscape: landscape.fitness, evaluations: 150 });
      expect(run.best.fitness).toBeCloseTo(best.reduce((sum, value) => sum + value, 0) / best.length, 12);
    });
  });
});

test("the first plan of backward elimination does not depend on the batch", async () => {
  const run = async (batch: number) => {
    const context = { model, rng: Rng.fromSeed(3), evaluations: 60, scores };
    const strategy = await greedy.create({ keep: 3, mode: "backward" }, context);
    const executor = toyExecutor(fitness);
    const result = await runSearch({ strategy, model, executor, evaluations: 60, batch });
    return firstResult({ ...result, plans: executor.evaluated });
  };
  expect(await run(1)).toEqual(await run(8));
});
