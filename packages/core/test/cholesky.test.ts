import { Rng } from "@coppice/core";
import { describe, expect, test } from "vitest";
import { factorCholesky, solveCholesky } from "../src/cholesky.js";

/** Aᵀ A + I of random A, and Gauss elimination of it: another way to the same solution. */
function randomSystem(n: number, seed: number) {
  const rng = Rng.fromSeed(seed);
  const a = Array.from({ length: n }, () => Array.from({ length: n }, () => rng.uniform() - 0.5));
  const matrix = Array.from({ length: n }, (_, i) =>
    Array.from({ length: n }, (_, j) =>
      a.reduce((sum, row) => sum + (row[i] as number) * (row[j] as number), i === j ? 1 : 0),
    ),
  );
  return { matrix, right: Array.from({ length: n }, () => rng.uniform() - 0.5) };
}

function eliminate(matrix: readonly (readonly number[])[], right: readonly number[]): number[] {
  const n = right.length;
  const rows = matrix.map((row, i) => [...row, right[i] as number]);
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < n; k++) {
      if (k === i) continue;
      const factor = (rows[k]?.[i] as number) / (rows[i]?.[i] as number);
      for (let j = i; j <= n; j++)
        (rows[k] as number[])[j] = (rows[k]?.[j] as number) - factor * (rows[i]?.[j] as number);
    }
  }
  return rows.map((row, i) => (row[n] as number) / (row[i] as number));
}

describe("cholesky", () => {
  test.each([1, 2, 7, 30])("solves systems of %i as elimination does", (n) => {
    const { matrix, right } = randomSystem(n, n);
    const factor = Float64Array.from(matrix.flat());
    expect(factorCholesky(factor, n)).toBe(true);
    const found = Float64Array.from(right);
    solveCholesky(factor, n, found);
    eliminate(matrix, right).forEach((expected, i) => {
      expect(found[i]).toBeCloseTo(expected, 11);
    });
  });

  test("has the factor of a known matrix", () => {
    const matrix = Float64Array.of(4, 99, 2, 10);
    expect(factorCholesky(matrix, 2)).toBe(true);
    expect([...matrix]).toEqual([2, 99, 1, 3]);
  });

  test("refuses matrices that are not positive definite", () => {
    expect(factorCholesky(Float64Array.of(1, 2, 2, 4), 2)).toBe(false);
    expect(factorCholesky(Float64Array.of(1, 0, 0, Number.NaN), 2)).toBe(false);
    expect(factorCholesky(Float64Array.of(-1), 1)).toBe(false);
  });
});
