import { Rng } from "@coppice/core";
import { describe, expect, test } from "vitest";
import { assign } from "../src/assignment.js";
import { slowAssign } from "./slow-merge.js";

const rng = Rng.fromSeed(71);

function costOf(costs: Float64Array, n: number, columns: ArrayLike<number>): number {
  return Array.from(columns).reduce((sum, column, row) => sum + (costs[row * n + column] as number), 0);
}

function* permutations(items: readonly number[]): Generator<number[]> {
  if (items.length === 0) yield [];
  for (const [i, item] of items.entries()) {
    for (const rest of permutations(items.toSpliced(i, 1))) yield [item, ...rest];
  }
}

const kinds = {
  uniform: () => rng.uniform(),
  // Many ties.
  whole: () => rng.integer(4),
  negative: () => rng.normal() * 1e3,
};

describe.each(Object.entries(kinds))("costs that are %s", (_, draw) => {
  test.each([1, 2, 3, 4, 5, 6, 7])("%i rows cost the least of all permutations", (n) => {
    const all = [...permutations(Array.from({ length: n }, (_, i) => i))];
    for (let round = 0; round < 20; round++) {
      const costs = Float64Array.from({ length: n * n }, draw);
      const found = assign(costs, n);
      expect(new Set(found).size).toBe(n);
      const least = Math.min(...all.map((columns) => costOf(costs, n, columns)));
      expect(costOf(costs, n, found)).toBeCloseTo(least, 9);
    }
  });

  test("40 rows cost what shortest paths without prices find", () => {
    const n = 40;
    const costs = Float64Array.from({ length: n * n }, draw);
    const rows = Array.from({ length: n }, (_, i) => [...costs.subarray(i * n, (i + 1) * n)]);
    const found = assign(costs, n);
    expect(new Set(found).size).toBe(n);
    expect(costOf(costs, n, found)).toBeCloseTo(costOf(costs, n, slowAssign(rows)), 8);
  });
});

test("a permutation among noise is found at the size of real experts", () => {
  const n = 1536;
  const order = rng.shuffle(Array.from({ length: n }, (_, i) => i));
  const costs = Float64Array.from({ length: n * n }, () => 1.3 + 0.02 * rng.normal());
  order.forEach((column, row) => {
    costs[row * n + column] = 0;
  });
  expect(Array.from(assign(costs, n))).toEqual(order);
});

test("with equal costs everything stays where it is", () => {
  expect([...assign(new Float64Array(25).fill(0.5), 5)]).toEqual([0, 1, 2, 3, 4]);
});
