import { dequantizeMatrix, type QuantizeRequest, roundToDtype } from "@coppice/core";
import { rtn } from "@coppice/quantizers";
import { describe, expect, it } from "vitest";
import { formats, request } from "./matrices.js";

/** Every grid of the definition on every group, in float64; the values of the best. */
function slowRtn({ weights, columns, format }: QuantizeRequest, shares: readonly number[]): number[] {
  const { bits, groupSize, symmetric } = format;
  const most = 2 ** bits - 1;
  const values: number[] = [];
  for (let start = 0; start < weights.length; start += groupSize) {
    const group = [...weights.subarray(start, start + groupSize)];
    const [low, high] = [Math.min(0, ...group), Math.max(0, ...group)];
    const grids = shares.flatMap((share) => {
      if (!symmetric) {
        const s = Math.fround((share * (high - low)) / most);
        return [{ s, z: Math.min(most, Math.max(0, Math.round((-share * low) / s))) }];
      }
      const s = Math.fround((share * Math.max(-low, high)) / 2 ** (bits - 1));
      return [s, -s].map((signed) => ({ s: signed, z: 2 ** (bits - 1) }));
    });
    const results = grids.map(({ s, z }) => {
      const rounded = group.map((w) => (Math.min(most, Math.max(0, Math.round(w / s) + z)) - z) * s);
      return { rounded, error: rounded.reduce((sum, value, i) => sum + (value - group[i]!) ** 2, 0) };
    });
    results.sort((a, b) => a.error - b.error);
    values.push(...results[0]!.rounded);
  }
  expect(values.length % columns).toBe(0);
  return values;
}

const squaredError = (weights: Float32Array, values: ArrayLike<number>) =>
  weights.reduce((sum, weight, i) => sum + (weight - values[i]!) ** 2, 0);

describe("rtn", () => {
  const clipped = (most: number) =>
    Array.from({ length: Math.round((most - 0.5) / 0.025) + 1 }, (_, i) => most - 0.025 * i);

  for (const format of formats) {
    it(`finds the best grid of every group: ${JSON.stringify(format)}`, async () => {
      const given = request(6, 128, format);
      const before = given.weights.slice();
      for (const clip of [true, false]) {
        const quantizer = await rtn.create({ clip }, undefined);
        const { matrix, fallback } = await quantizer.quantize(given);
        expect(fallback).toBeUndefined();
        const values = dequantizeMatrix(matrix);
        const expected = slowRtn(given, clip ? clipped(given.format.symmetric ? 1.15 : 1) : [1]);
        const [found, best] = [squaredError(given.weights, values), squaredError(given.weights, expected)];
        expect(Math.abs(found / best - 1)).toBeLessThan(1e-6);
        // Equal but where two grids are equally good to the last bits.
        const different = values.filter((value, i) => Math.abs(value - expected[i]!) > 1e-6).length;
        expect(different).toBeLessThan(values.length / 50);
      }
      expect(given.weights).toEqual(before);
    });
  }

  it("stores scales that their dtype holds, and keeps groups of zeros", async () => {
    const quantizer = await rtn.create({}, undefined);
    for (const scales of ["F16", "BF16"] as const) {
      for (const symmetric of [true, false]) {
        const given = { ...request(4, 64, { symmetric }), scales };
        given.weights.fill(0, 32, 96);
        const { matrix } = await quantizer.quantize(given);
        const rounded = matrix.scales.slice();
        roundToDtype(rounded, scales);
        expect(matrix.scales).toEqual(rounded);
        expect(
          dequantizeMatrix(matrix)
            .subarray(32, 96)
            .every((value) => value === 0),
        ).toBe(true);
      }
    }
  });
});
