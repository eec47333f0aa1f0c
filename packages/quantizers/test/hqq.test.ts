import { dequantizeMatrix, type QuantizeRequest } from "@coppice/core";
import { hqq } from "@coppice/quantizers";
import { describe, expect, it } from "vitest";
import { formats, request } from "./matrices.js";

/** The method step by step as its description says, group by group in float64. */
function slowHqq({ weights, format }: QuantizeRequest, p: number, steps: number): number[] {
  const { bits, groupSize, symmetric } = format;
  const most = 2 ** bits - 1;
  const clamp = (q: number) => Math.min(most, Math.max(0, q));
  return Array.from({ length: weights.length / groupSize }, (_, group) => {
    const w = [...weights.subarray(group * groupSize, (group + 1) * groupSize)];
    const [low, high] = [Math.min(0, ...w), Math.max(0, ...w)];
    const starts = symmetric
      ? [1, -1].map((sign) => ({
          s: sign * Math.fround(Math.max(-low, high) / 2 ** (bits - 1)),
          z: 2 ** (bits - 1),
        }))
      : [{ s: Math.fround((high - low) / most), z: -low / Math.fround((high - low) / most) }];
    const errorOf = ({ s, z }: { s: number; z: number }) =>
      w.reduce((sum, x) => sum + Math.abs((clamp(Math.round(x / s) + z) - z) * s - x) ** p, 0);
    const tried = starts.flatMap(({ s: first, z: begin }) => {
      let [s, z, beta] = [first, begin, 10];
      const seen = [{ s, z: clamp(Math.round(z)) }];
      for (let step = 0; step < steps; step++) {
        const q = w.map((x) => clamp(Math.round(x / s + z)));
        const target = w.map((x, i) => {
          const r = x - (q[i]! - z) * s;
          const e = r === 0 ? 0 : Math.sign(r) * Math.max(0, Math.abs(r) - Math.abs(r) ** (p - 1) / beta);
          return x - e;
        });
        if (symmetric || step % 2 === 1) {
          const above = q.reduce((sum, code, i) => sum + (code - z) * target[i]!, 0);
          s = Math.fround(above / q.reduce((sum, code) => sum + (code - z) ** 2, 0));
        } else z = q.reduce((sum, code, i) => sum + code - target[i]! / s, 0) / w.length;
        beta *= 1.01;
        seen.push({ s, z: clamp(Math.round(z)) });
        const errors = seen.map(errorOf);
        if (errors.length - 1 - errors.indexOf(Math.min(...errors)) >= 2) break;
      }
      return seen;
    });
    const results = tried.map(({ s, z }) => {
      const values = w.map((x) => (clamp(Math.round(x / s) + z) - z) * s);
      return { values, error: values.reduce((sum, value, i) => sum + Math.abs(value - w[i]!) ** p, 0) };
    });
    return results.reduce((best, one) => (one.error < best.error ? one : best)).values;
  }).flat();
}

const normOf = (weights: Float32Array, values: ArrayLike<number>, p: number) =>
  weights.reduce((sum, weight, i) => sum + Math.abs(weight - values[i]!) ** p, 0);

describe("hqq", () => {
  for (const format of formats) {
    it(`takes the steps of the method: ${JSON.stringify(format)}`, async () => {
      const given = request(5, 128, format, 4);
      for (const [norm, steps] of [
        [0.7, 20],
        [1, 5],
      ] as const) {
        const quantizer = await hqq.create({ norm, steps }, undefined);
        const values = dequantizeMatrix((await quantizer.quantize(given)).matrix);
        const expected = slowHqq(given, norm, steps);
        expect(
          Math.abs(normOf(given.weights, values, norm) / normOf(given.weights, expected, norm) - 1),
        ).toBeLessThan(1e-6);
        const different = values.filter((value, i) => Math.abs(value - expected[i]!) > 1e-6).length;
        expect(different).toBeLessThan(values.length / 50);
      }
    });
  }

  it("keeps groups of zeros", async () => {
    const quantizer = await hqq.create({}, undefined);
    for (const symmetric of [true, false]) {
      const given = request(2, 64, { symmetric });
      given.weights.fill(0, 32, 64);
      const { matrix } = await quantizer.quantize(given);
      expect(
        dequantizeMatrix(matrix)
          .subarray(32, 64)
          .every((value) => value === 0),
      ).toBe(true);
    }
  });
});
