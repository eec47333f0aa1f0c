import { Rng } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { bounded, unbounded } from "../src/bounded.js";
import { symmetricEigen } from "../src/symmetric-eigen.js";

describe("symmetricEigen", () => {
  test.each([1, 2, 3, 8, 25])("takes apart and puts together matrices of size %i", (size) => {
    const rng = Rng.fromSeed(size);
    const matrix = new Float64Array(size * size);
    for (let i = 0; i < size; i++) {
      for (let j = 0; j <= i; j++) matrix[i * size + j] = matrix[j * size + i] = rng.normal();
    }
    const { values, vectors } = symmetricEigen(matrix, size);
    for (let i = 0; i < size; i++) {
      for (let j = 0; j < size; j++) {
        let product = 0;
        let dot = 0;
        for (let k = 0; k < size; k++) {
          const vector = (row: number, column: number) => vectors[row * size + column] as number;
          product += vector(i, k) * (values[k] as number) * vector(j, k);
          dot += vector(k, i) * vector(k, j);
        }
        expect(product).toBeCloseTo(matrix[i * size + j] as number, 11);
        expect(dot).toBeCloseTo(i === j ? 1 : 0, 12);
      }
    }
  });

  test("finds known eigenvalues, small ones relatively exactly", () => {
    // [[2, 1], [1, 2]]: 1 and 3. Diagonal entries 1 and 1e-12 turned by 1/2 √2 would lose the small one.
    expect([...symmetricEigen(Float64Array.of(2, 1, 1, 2), 2).values].sort()).toEqual([
      expect.closeTo(1, 14),
      expect.closeTo(3, 14),
    ]);
    const tiny = symmetricEigen(Float64Array.of(1, 1e-9, 1e-9, 1e-12), 2);
    expect(Math.min(...tiny.values) / (1e-12 - 1e-18)).toBeCloseTo(1, 6);
  });
});

describe("bounded", () => {
  const bounds = fc.double({ min: 0.01, max: 5, noNaN: true });
  const numbers = fc.double({ min: -100, max: 100, noNaN: true });

  test("stays within the bound, everywhere", () => {
    fc.assert(
      fc.property(numbers, bounds, (value, bound) => Math.abs(bounded(value, bound)) <= bound * (1 + 1e-12)),
    );
  });

  test("is the identity but near the bounds, and smooth: small steps stay small", () => {
    fc.assert(
      fc.property(numbers, bounds, (value, bound) => {
        const step = 1e-6;
        return Math.abs(bounded(value + step, bound) - bounded(value, bound)) <= step * 1.001 + 1e-12;
      }),
    );
    expect(bounded(0.7, 1)).toBe(0.7);
    expect(bounded(-0.7, 1)).toBe(-0.7);
    expect(bounded(1.1, 1)).toBeCloseTo(1, 12);
    expect(bounded(1, 1)).toBeCloseTo(1 - 0.1 ** 2 / 0.4, 12);
  });

  test("rises from -bound to bound, then falls again", () => {
    const values = Array.from({ length: 221 }, (_, i) => bounded(-1.1 + i / 100, 1));
    values.slice(1).forEach((value, i) => {
      expect(value).toBeGreaterThanOrEqual(values[i] as number);
    });
    expect(bounded(1.3, 1)).toBeCloseTo(bounded(0.9, 1), 12);
    expect(bounded(0.3 + 4.4, 1)).toBeCloseTo(0.3, 12);
  });

  test("has an inverse", () => {
    fc.assert(
      fc.property(fc.double({ min: -1, max: 1, noNaN: true }), bounds, (share, bound) => {
        const value = share * bound;
        return Math.abs(bounded(unbounded(value, bound), bound) - value) < 1e-9;
      }),
    );
  });
});
