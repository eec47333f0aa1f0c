import { type Plan, parsePlan } from "@coppice/core";
import { type ModelFeature, randomModel, sampleShapes, slowForward } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import {
  alignedPlan,
  everythingPlan,
  refitPlan,
  repairedPlan,
  sampleRules,
  skippingPlan,
} from "../src/sample-plans.js";

// A backend that ignored a part of a plan would otherwise pass the conformance suite.
describe.each(Object.keys(sampleShapes) as ModelFeature[])(
  "plans for the sample model with %s",
  (feature) => {
    const whole = randomModel(sampleShapes[feature]);
    const { model } = whole;
    const ids = Array.from({ length: 14 }, (_, i) => (i * 11 + 5) % model.vocabSize);
    const difference = (plan: Plan, other: Plan | undefined) => {
      const [a, b] = [plan, other].map((one) => slowForward(whole, ids, one).logits.flat()) as [
        number[],
        number[],
      ];
      return Math.max(...a.map((value, i) => Math.abs(value - (b[i] as number))));
    };

    test("are valid", () => {
      const plans = [
        alignedPlan(model, 1),
        refitPlan(model, 4),
        repairedPlan(whole, 2),
        everythingPlan(whole, 3),
        ...Object.values(sampleRules).map((rule) => skippingPlan(model, rule)),
      ];
      for (const plan of plans) expect(parsePlan(JSON.parse(JSON.stringify(plan)), model)).toEqual(plan);
    });

    test("compute something else without any of their parts", () => {
      const without = (plan: Plan, key: "units" | "merge" | "down" | "router" | "skip"): Plan => ({
        ...plan,
        layers: plan.layers.map(({ [key]: _, ...layer }) => layer),
      });
      const aligned = alignedPlan(model, 1);
      expect(difference(aligned, without(aligned, "units"))).toBeGreaterThan(1e-3);
      expect(difference(aligned, without(aligned, "merge"))).toBeGreaterThan(1e-3);
      const refit = refitPlan(model, 4);
      for (const key of ["units", "merge", "down"] as const)
        expect(difference(refit, without(refit, key)), key).toBeGreaterThan(1e-3);
      const repaired = repairedPlan(whole, 2);
      expect(difference(repaired, without(repaired, "router"))).toBeGreaterThan(1e-3);
      const everything = everythingPlan(whole, 3);
      for (const key of ["units", "down", "router", "skip"] as const)
        expect(difference(everything, without(everything, key)), key).toBeGreaterThan(1e-3);
    });

    test.each(Object.entries(sampleRules))(
      "skip more choices of some tokens by the rule %s, never all",
      (_, rule) => {
        const { layers } = slowForward(whole, ids, skippingPlan(model, rule));
        const choices = layers.flatMap((layer) => layer.choices);
        const skippedOf = choices.map((chosen) => chosen.filter(({ slot }) => slot < 0).length);
        expect(skippedOf.some((count) => count > 0)).toBe(true);
        expect(new Set(skippedOf).size).toBeGreaterThan(1);
        expect(skippedOf.every((count, token) => count < (choices[token]?.length ?? 0))).toBe(true);
      },
    );

    test("spare tokens that would skip", () => {
      const { spare: _, ...alone } = sampleRules.spare;
      expect(difference(skippingPlan(model, sampleRules.spare), skippingPlan(model, alone))).toBeGreaterThan(
        1e-3,
      );
    });
  },
);

test("unit merges of the sample plans share targets, drop units and leave slots alone", () => {
  const { model } = randomModel(sampleShapes["many-experts"]);
  const units = alignedPlan(model, 1).layers.flatMap((layer) => layer.units ?? []);
  const targets = units.flatMap((slot) => (slot ?? []).map(({ to }) => to));
  expect(units).toContain(null);
  expect(targets.some((to) => to.includes(-1))).toBe(true);
  expect(targets.some((to) => new Set(to).size < to.length)).toBe(true);
});
