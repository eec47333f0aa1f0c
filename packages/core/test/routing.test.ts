import { type LayerPlan, Rng, type RouterSpec, routeTokens } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

function router(topK: number, normalize = true): RouterSpec {
  const [layer] = tinyModel().model.layers;
  if (layer?.feedForward.kind !== "moe") throw new Error("layer 0 has experts");
  const { normalize: _, ...rest } = layer.feedForward.router;
  return { ...rest, topK, ...(normalize && { normalize: { power: 1 } }) };
}

/** Softmax, map, the k largest, division, as the definitions say, in float64 for one token. */
function slow(logits: readonly number[], topK: number, normalize: boolean, map?: LayerPlan["routerMap"]) {
  const sum = logits.reduce((total, z) => total + Math.exp(z), 0);
  const p = logits.map((z) => Math.exp(z) / sum);
  const mass = map ? map.map((row) => row.reduce((total, c, j) => total + c * (p[j] as number), 0)) : p;
  const slots = mass.map((_, i) => i).sort((a, b) => (mass[b] as number) - (mass[a] as number) || a - b);
  const chosen = slots.slice(0, topK);
  const total = normalize || map ? chosen.reduce((t, slot) => t + (mass[slot] as number), 0) : 1;
  return { slots: chosen, gates: chosen.map((slot) => (mass[slot] as number) / total) };
}

function expectRouting(
  logits: readonly (readonly number[])[],
  topK: number,
  normalize: boolean,
  plan?: LayerPlan,
): void {
  const found = routeTokens(Float32Array.from(logits.flat()), logits.length, router(topK, normalize), {
    plan,
  });
  const k = found.topK;
  logits.forEach((row, token) => {
    const expected = slow([...Float32Array.from(row)], k, normalize, plan?.routerMap);
    expect([...found.slots.slice(token * k, (token + 1) * k)]).toEqual(expected.slots);
    expected.gates.forEach((gate, i) => {
      const seen = found.gates[token * k + i] as number;
      expect(Math.abs(seen - gate)).toBeLessThanOrEqual(2e-5 * Math.max(1, Math.abs(gate)));
    });
  });
}

const randomLogits = (tokens: number, experts: number, seed: number) => {
  const rng = Rng.fromSeed(seed);
  return Array.from({ length: tokens }, () => Array.from({ length: experts }, () => 3 * rng.normal()));
};

describe("routeTokens", () => {
  test.each([
    [8, 2, true],
    [8, 2, false],
    [128, 8, true],
    [128, 8, false],
    [4, 4, true],
    [3, 1, true],
    [3, 1, false],
  ])("is what the definitions say: %i experts, top-%i, normalised %s", (experts, topK, normalize) => {
    expectRouting(randomLogits(60, experts, 1), topK, normalize);
  });

  test("is what the definitions say under a router map", () => {
    const rng = Rng.fromSeed(2);
    for (const normalize of [true, false]) {
      const experts = [6, 1, 3, 0];
      const routerMap = experts.map((expert) =>
        Array.from({ length: 8 }, (_, j) => (j === expert ? 1 : 0) + 0.1 * rng.normal()),
      );
      expectRouting(randomLogits(60, 8, 3), 2, normalize, { layer: 0, experts, routerMap });
      expectRouting(randomLogits(60, 8, 4), 2, normalize, { layer: 0, experts, routerMap, topK: 1 });
    }
  });

  test("takes the plan's top-k, and never more than there are slots", () => {
    const logits = Float32Array.of(1, 2, 3);
    expect(routeTokens(logits, 1, router(2), { plan: { layer: 0, experts: [0, 1, 2], topK: 1 } }).topK).toBe(
      1,
    );
    expect(routeTokens(logits, 1, router(8)).topK).toBe(3);
  });

  test("gives ties to the lower slot and orders by gate", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -2, max: 2 }), { minLength: 2, maxLength: 12 }), (logits) => {
        const { slots, gates } = routeTokens(Float32Array.from(logits), 1, router(2));
        const order = logits
          .map((_, i) => i)
          .sort((a, b) => (logits[b] as number) - (logits[a] as number) || a - b);
        expect([...slots]).toEqual(order.slice(0, 2));
        expect(gates[0] as number).toBeGreaterThanOrEqual(gates[1] as number);
      }),
    );
  });

  test("drops experts as a logit of -1e9 would", () => {
    const kept = [5, 2, 7];
    for (const normalize of [true, false]) {
      const logits = randomLogits(40, 8, 5);
      const sliced = Float32Array.from(logits.flatMap((row) => kept.map((expert) => row[expert] as number)));
      const masked = Float32Array.from(
        logits.flatMap((row) => row.map((z, j) => (kept.includes(j) ? z : -1e9))),
      );
      const a = routeTokens(sliced, 40, router(2, normalize), { plan: { layer: 0, experts: kept } });
      const b = routeTokens(masked, 40, router(2, normalize));
      expect([...a.slots].map((slot) => kept[slot])).toEqual([...b.slots]);
      a.gates.forEach((gate, i) => {
        expect(Math.abs(gate - (b.gates[i] as number))).toBeLessThan(1e-6);
      });
    }
  });

  test("holds at large logits, and when slots of a map cancel", () => {
    const { gates } = routeTokens(Float32Array.of(3e4, 3e4 - 1, -3e4), 1, router(2));
    expect(gates[0]).toBeCloseTo(1 / (1 + Math.exp(-1)), 6);
    const routerMap = [
      [1, 0],
      [-1, 0],
    ];
    const cancelled = routeTokens(Float32Array.of(2, 1), 1, router(2), {
      plan: { layer: 0, experts: [0, 1], routerMap },
    });
    expect([...cancelled.slots]).toEqual([0, 1]);
    expect([...cancelled.gates]).toEqual([1, 0]);
  });

  test("does not fail or hide it when logits are not numbers", () => {
    const { slots, gates } = routeTokens(Float32Array.of(Number.NaN, 1, 2), 1, router(2));
    expect(slots).toHaveLength(2);
    expect(gates.some(Number.isNaN)).toBe(true);
  });
});
