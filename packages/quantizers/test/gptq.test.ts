import { dequantizeMatrix, type InputSums, type QuantizeRequest, unpackBits } from "@coppice/core";
import { gptq, rtn } from "@coppice/quantizers";
import { describe, expect, it } from "vitest";
import { formats, inputRows, outputError, request, sumsOf } from "./matrices.js";

/** Gauss-Jordan elimination. */
function inverse(matrix: readonly (readonly number[])[]): number[][] {
  const n = matrix.length;
  const rows = matrix.map((row, i) => [...row, ...row.map((_, j) => (i === j ? 1 : 0))]);
  for (let i = 0; i < n; i++) {
    const pivot = rows
      .slice(i)
      .reduce((best, row, k) => (Math.abs(row[i]!) > Math.abs(rows[best]![i]!) ? i + k : best), i);
    [rows[i], rows[pivot]] = [rows[pivot]!, rows[i]!];
    const scaled = rows[i]!.map((value) => value / rows[i]![i]!);
    rows[i] = scaled;
    for (let k = 0; k < n; k++) {
      if (k === i) continue;
      const factor = rows[k]![i]!;
      rows[k] = rows[k]!.map((value, j) => value - factor * scaled[j]!);
    }
  }
  return rows.map((row) => row.slice(n));
}

/**
 * Optimal brain quantization in a fixed order on a given grid (arXiv 2210.17323, equations 2 and 3): after every column
 * the rest moves by its error times the inverse, from which the column is then eliminated. No Cholesky factor.
 */
function slowGptq(
  { weights, rows, columns, format }: QuantizeRequest,
  { gram, tokens }: InputSums,
  grid: { scales: ArrayLike<number>; zeros: ArrayLike<number> },
  { damp, actOrder }: { damp: number; actOrder: boolean },
): number[] {
  const all = Array.from({ length: columns }, (_, i) => i);
  const diagonal = all.map((i) => gram[i * columns + i]! / tokens);
  const mean = diagonal.reduce((sum, value) => sum + value, 0) / columns;
  const order = actOrder ? all.toSorted((a, b) => diagonal[b]! - diagonal[a]!) : all;
  const start = inverse(
    all.map((i) => all.map((j) => gram[i * columns + j]! / tokens + (i === j ? damp * mean : 0))),
  );
  const values = new Array<number>(rows * columns).fill(0);
  for (let row = 0; row < rows; row++) {
    const w = all.map((i) => weights[row * columns + i]!);
    const h = start.map((line) => [...line]);
    for (const [step, i] of order.entries()) {
      const group = row * (columns / format.groupSize) + Math.floor(i / format.groupSize);
      const [s, z] = [grid.scales[group]!, grid.zeros[group]!];
      const q = Math.min(2 ** format.bits - 1, Math.max(0, Math.round(w[i]! / s) + z));
      values[row * columns + i] = (q - z) * s;
      const error = (w[i]! - (q - z) * s) / h[i]![i]!;
      const rest = order.slice(step + 1);
      for (const j of rest) w[j] = w[j]! - error * h[i]![j]!;
      const line = [...h[i]!];
      for (const j of rest) for (const k of rest) h[j]![k] = h[j]![k]! - (line[j]! * line[k]!) / line[i]!;
    }
  }
  return values;
}

describe("gptq", () => {
  const inputs = inputRows(200, 64);
  const sums = sumsOf(inputs);

  for (const format of formats) {
    it(`moves errors as the definition says: ${JSON.stringify(format)}`, async () => {
      const given = { ...request(4, 64, format, 7), inputs: sums };
      for (const options of [
        { damp: 0.01, actOrder: true },
        { damp: 0.1, actOrder: false },
      ]) {
        const quantizer = await gptq.create(options, undefined);
        expect(quantizer.needs.inputs).toBe(true);
        const { matrix, fallback } = await quantizer.quantize(given);
        expect(fallback).toBeUndefined();
        const { rows, columns, groupSize, bits, zeroPoints } = matrix;
        const zeros = zeroPoints
          ? unpackBits(zeroPoints, rows, columns / groupSize, bits)
          : new Uint8Array(matrix.scales.length).fill(2 ** (bits - 1));
        const expected = slowGptq(given, sums, { scales: matrix.scales, zeros }, options);
        const values = dequantizeMatrix(matrix);
        values.forEach((value, i) => {
          expect(value).toBeCloseTo(expected[i]!, 6);
        });
      }
    });
  }

  it("changes outputs less than rounding does", async () => {
    const given = { ...request(16, 64, { bits: 4 }, 9), inputs: sums };
    const errors = [];
    for (const plugin of [gptq, rtn]) {
      const quantizer = await plugin.create({}, undefined);
      const { matrix } = await quantizer.quantize(given);
      errors.push(outputError(given.weights, dequantizeMatrix(matrix), inputs));
    }
    expect(errors[0]).toBeLessThan(0.5 * errors[1]!);
  });

  it("falls back and says why", async () => {
    const quantizer = await gptq.create({ leastTokens: 50 }, undefined);
    const nearest = await rtn.create({}, undefined);
    const given = request(4, 64);
    const expected = await nearest.quantize(given);
    expect(await quantizer.quantize(given)).toEqual({
      ...expected,
      fallback: "rounded to nearest: its inputs are not known",
    });
    const thin = await quantizer.quantize({ ...given, inputs: sumsOf(inputs.slice(0, 49)) });
    expect(thin).toEqual({ ...expected, fallback: "rounded to nearest: 49 inputs, fewer than 50" });
    const broken = { ...sums, gram: sums.gram.map((value, i) => (i % 65 === 0 ? value : 100 * value)) };
    expect((await quantizer.quantize({ ...given, inputs: broken })).fallback).toContain("cannot be factored");
  });

  it("takes fewer inputs than columns, and columns without any", async () => {
    const few = inputs.slice(0, 20).map((x) => x.map((value, i) => (i >= 32 && i < 40 ? 0 : value)));
    const quantizer = await gptq.create({ leastTokens: 1 }, undefined);
    const given = { ...request(4, 64), inputs: sumsOf(few) };
    const { matrix, fallback } = await quantizer.quantize(given);
    expect(fallback).toBeUndefined();
    const values = dequantizeMatrix(matrix);
    const rounded = dequantizeMatrix((await (await rtn.create({}, undefined)).quantize(given)).matrix);
    expect(outputError(given.weights, values, few)).toBeLessThan(outputError(given.weights, rounded, few));
    // Nothing is known of these columns, so they stay near what they were.
    const error = (found: Float32Array) => {
      let sum = 0;
      for (let row = 0; row < 4; row++) {
        for (let i = 32; i < 40; i++) sum += (found[row * 64 + i]! - given.weights[row * 64 + i]!) ** 2;
      }
      return sum;
    };
    expect(error(values)).toBeLessThan(4 * error(rounded));
  });
});
