import { Rng } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { rowProducts } from "../src/row-products.js";

describe("rowProducts", () => {
  // Rows that fill blocks of four and of two, and all that may be left over.
  it.each([
    [1, 1],
    [2, 3],
    [3, 2],
    [4, 5],
    [7, 4],
    [9, 1],
  ])("is every product of %i rows with %i", (n, m) => {
    const rng = Rng.fromSeed(10 * n + m);
    const size = 5;
    const a = Float32Array.from({ length: n * size }, () => rng.normal());
    const b = Float64Array.from({ length: m * size }, () => rng.normal());
    const into = new Float64Array(n * m + 1).fill(7);
    rowProducts(a, b, size, into);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < m; j++) {
        let dot = 0;
        for (let t = 0; t < size; t++) dot += (a[i * size + t] as number) * (b[j * size + t] as number);
        expect(into[i * m + j]).toBeCloseTo(dot, 12);
      }
    }
    // Nothing behind the products is touched.
    expect(into[n * m]).toBe(7);
  });
});
