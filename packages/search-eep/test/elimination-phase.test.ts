import { type Plan, planKey, Rng, type Scored } from "@coppice/core";
import { separableLandscape, toyModel } from "@coppice/plugin-kit";
import { expect, test } from "vitest";
import { EliminationPhase } from "../src/elimination-phase.js";
import { createLayout } from "../src/layout.js";

const model = toyModel({ layers: 4, experts: 8 });
const layout = createLayout(model, { keep: 4, groups: "layer" });
const { fitness, values } = separableLandscape(model, 3);

function eliminate(evaluations: number, scores: ReadonlyMap<string, readonly Float64Array[]>) {
  const context = { model, rng: Rng.fromSeed(1), evaluations, scores };
  const phase = new EliminationPhase(layout, context, { seeds: "all", evaluations });
  const plans: Plan[] = [];
  for (;;) {
    const proposals = phase.propose(8);
    if (proposals.length === 0) break;
    plans.push(...proposals.map(({ plan }) => plan));
    for (const { plan, probe } of proposals) {
      expect(probe ?? false).toBe(plan.layers.some((layer) => layer.experts.length > 4));
    }
    phase.learn(
      proposals.map(({ plan, origin }): Scored => {
        const value = fitness(plan);
        const candidate = { plan, origin, phase: "prune" };
        return {
          candidate,
          key: planKey(plan, model),
          fitness: value,
          scores: Float64Array.of(value),
          cached: false,
        };
      }),
    );
  }
  expect(new Set(plans.map((plan) => planKey(plan, model))).size).toBe(plans.length);
  return { plans, subsets: phase.subsets };
}

const optimal = values.map((row) =>
  Array.from(row, (value, expert) => ({ value, expert }))
    .sort((a, b) => b.value - a.value)
    .slice(0, 4)
    .map(({ expert }) => expert)
    .sort((a, b) => a - b),
);

test("finds the optimum where the losses of experts add up", () => {
  const { subsets, plans } = eliminate(120, new Map());
  expect(subsets).toEqual(optimal);
  expect(plans.length).toBeLessThanOrEqual(120);
});

test("keeps within its evaluations and still ends with `keep` experts", () => {
  for (const evaluations of [3, 33, 34, 66, 67, 80]) {
    const { subsets, plans } = eliminate(evaluations, new Map([["perfect", values]]));
    expect(plans.length).toBeLessThanOrEqual(evaluations);
    expect(subsets.map((subset) => subset.length)).toEqual([4, 4, 4, 4]);
  }
});

test("follows the criteria where it cannot measure every expert", () => {
  const { subsets } = eliminate(20, new Map([["perfect", values]]));
  expect(subsets).toEqual(optimal);
});
