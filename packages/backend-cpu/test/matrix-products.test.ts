import { Rng } from "@coppice/core";
import { expect, it } from "vitest";
import { openProducts } from "../src/matrix-products.js";

it("multiplies the transpose of one matrix by another", async () => {
  const rng = Rng.fromSeed(3);
  const values = (length: number) => Float32Array.from({ length }, () => rng.normal());
  await using products = await openProducts();
  for (const [rows, p, q] of [
    [5, 3, 4],
    [64, 17, 1],
    [1, 2, 2],
  ] as const) {
    const [a, b] = [values(rows * p), values(rows * q)];
    const got = await products.transposed({ a, b, rows, p, q });
    expect(got).toHaveLength(p * q);
    for (let i = 0; i < p * q; i++) {
      let sum = 0;
      for (let row = 0; row < rows; row++)
        sum += (a[row * p + Math.floor(i / q)] as number) * (b[row * q + (i % q)] as number);
      expect(got[i]).toBeCloseTo(sum, 4);
    }
  }
});
