import { combinations, Rng } from "@coppice/core";
import { describe, expect, test } from "vitest";
import { findChoice, fitGates, type GateRange, type TokenQuadratic } from "../src/best-gates.js";

/** Gram matrix of `slots` random outputs and their products with a random wish. */
function random(slots: number, seed: number): TokenQuadratic {
  const rng = Rng.fromSeed(seed);
  const vector = () => Array.from({ length: 4 }, () => rng.uniform() - 0.4);
  const outputs = Array.from({ length: slots }, vector);
  const wish = vector();
  const inner = (a: number[], b: number[]) => a.reduce((sum, value, i) => sum + value * (b[i] as number), 0);
  return {
    grams: Float64Array.from(outputs.flatMap((a) => outputs.map((b) => inner(a, b)))),
    wanted: Float64Array.from(outputs, (a) => inner(a, wish)),
  };
}

function errorOf(
  { grams, wanted }: TokenQuadratic,
  chosen: readonly number[],
  gates: readonly number[],
): number {
  const slots = wanted.length;
  return chosen.reduce(
    (sum, a, i) =>
      chosen.reduce(
        (inner, b, j) =>
          inner + (gates[i] as number) * (gates[j] as number) * (grams[a * slots + b] as number),
        sum - 2 * (gates[i] as number) * (wanted[a] as number),
      ),
    0,
  );
}

/** The least error on a fine grid of gate weights of two slots. */
function searched(token: TokenQuadratic, chosen: readonly number[], range: GateRange): number {
  const steps = 400;
  let best = Number.POSITIVE_INFINITY;
  for (let i = 1; i < steps; i++) {
    const a = (i / steps) * range.total;
    if (range.kind === "sum") best = Math.min(best, errorOf(token, chosen, [a, range.total - a]));
    else if (range.kind === "norm") {
      const b = (range.total ** range.power - a ** range.power) ** (1 / range.power);
      best = Math.min(best, errorOf(token, chosen, [a, b]));
    } else {
      for (let j = 1; j < steps && !(range.shared && i + j >= steps); j++) {
        best = Math.min(best, errorOf(token, chosen, [a, (j / steps) * range.total]));
      }
    }
  }
  return best;
}

const ranges: Record<string, GateRange> = {
  sum: { kind: "sum", total: 1, power: 1, shared: true },
  "scaled sum": { kind: "sum", total: 2.5, power: 1, shared: false },
  each: { kind: "each", total: 1, power: 1, shared: false },
  "shared each": { kind: "each", total: 1.7, power: 1, shared: true },
};

describe("fitGates", () => {
  test.each(Object.entries(ranges))("within %s is as good as a grid of all", (_, range) => {
    for (let seed = 0; seed < 30; seed++) {
      const token = random(5, seed);
      const gates = Float64Array.of(0.9, 0.1);
      const found = fitGates(token, [3, 1], range, gates);
      expect(found).toBeCloseTo(errorOf(token, [3, 1], [...gates]), 10);
      const sum = (gates[0] as number) + (gates[1] as number);
      if (range.kind === "sum") expect(sum).toBeCloseTo(range.total, 10);
      if (range.shared) expect(sum).toBeLessThanOrEqual(range.total + 1e-12);
      // The floor of gate weights and coordinate descent along a bound cost a little.
      expect(found).toBeLessThanOrEqual(searched(token, [3, 1], range) + 0.03 * range.total);
    }
  });

  test("keeps to a norm, and is as good as a grid of all", () => {
    const range: GateRange = { kind: "norm", total: 1, power: 2, shared: true };
    for (let seed = 0; seed < 30; seed++) {
      const token = random(5, seed);
      const gates = Float64Array.of(0.6, 0.8);
      const found = fitGates(token, [0, 2], range, gates);
      expect(Math.hypot(...gates)).toBeCloseTo(1, 10);
      expect(found).toBeLessThanOrEqual(searched(token, [0, 2], range) + 0.05);
    }
  });
});

describe("findChoice", () => {
  const range: GateRange = { kind: "sum", total: 1, power: 1, shared: true };

  test("mostly finds the best of all pairs, and never one that is worse than the start", () => {
    let exact = 0;
    for (let seed = 0; seed < 40; seed++) {
      const token = random(6, 100 + seed);
      const all = [...combinations([0, 1, 2, 3, 4, 5], 2)].map((chosen) =>
        fitGates(token, chosen, range, Float64Array.of(0.5, 0.5)),
      );
      const start = fitGates(token, [4, 5], range, Float64Array.of(0.5, 0.5));
      const { error, chosen, gates } = findChoice(token, [4, 5], [0.5, 0.5], range, () => true);
      expect(error).toBeCloseTo(errorOf(token, chosen, [...gates]), 10);
      expect(error).toBeLessThanOrEqual(start + 1e-9);
      if (error <= Math.min(...all) + 1e-6) exact++;
    }
    expect(exact).toBeGreaterThan(34);
  });

  test("chooses only what is allowed", () => {
    for (let seed = 0; seed < 10; seed++) {
      const { chosen } = findChoice(random(6, seed), [0, 3], [0.5, 0.5], range, (slots) => slots.includes(3));
      expect(chosen).toContain(3);
    }
  });
});
