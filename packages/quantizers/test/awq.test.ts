import { dequantizeMatrix, type QuantizeRequest } from "@coppice/core";
import { awq, gptq, rtn } from "@coppice/quantizers";
import { describe, expect, it } from "vitest";
import { inputRows, outputError, request, sumsOf } from "./matrices.js";

const inputs = inputRows(160, 64);
const sums = sumsOf(inputs);

/** Every exponent by the definition: scale, round to the plain range, scale back, run all inputs through. */
async function slowScales(
  readers: readonly QuantizeRequest[],
  magnitude: readonly number[],
  steps: number,
): Promise<{ exponent: number; error: number; factors: number[] }> {
  const nearest = await rtn.create({ clip: false }, undefined);
  const tried = [];
  for (let step = 0; step < steps; step++) {
    const exponent = step / steps;
    const powers = magnitude.map((value) => value ** exponent);
    const factors = powers.map((value) => value / Math.sqrt(Math.max(...powers) * Math.min(...powers)));
    let error = 0;
    for (const reader of readers) {
      const weights = reader.weights.map((w, i) => w * factors[i % 64]!);
      const values = dequantizeMatrix((await nearest.quantize({ ...reader, weights })).matrix);
      error += outputError(
        Array.from(values, (value, i) => value / factors[i % 64]!),
        reader.weights,
        inputs,
      );
    }
    tried.push({ exponent, error, factors });
  }
  return tried.reduce((best, one) => (one.error < best.error ? one : best));
}

describe("awq", () => {
  const readers = [request(6, 64, { bits: 4 }, 3), request(10, 64, { bits: 4, symmetric: false }, 4)];
  const asked = { name: "x", columns: 64, readers, inputs: sums };
  const means = Array.from(sums.magnitude, (sum) => sum / sums.tokens);

  it("finds the exponent with the least output error", async () => {
    for (const steps of [5, 20]) {
      const quantizer = await awq.create({ steps }, undefined);
      const factors = await quantizer.scaleInputs?.(asked);
      const expected = await slowScales(readers, means, steps);
      expect(expected.exponent).toBeGreaterThan(0);
      factors?.forEach((factor, i) => {
        expect(factor).toBeCloseTo(expected.factors[i]!, 9);
      });
    }
  });

  it("gives tied channels one factor, by their mean", async () => {
    const tied = Int32Array.from({ length: 64 }, (_, i) => i % 32);
    const quantizer = await awq.create({}, undefined);
    const factors = (await quantizer.scaleInputs?.({ ...asked, tied }))!;
    const together = means.map((value, i) => (value + means[(i + 32) % 64]!) / 2);
    const expected = await slowScales(readers, together, 20);
    factors.forEach((factor, i) => {
      expect(factor).toBeCloseTo(expected.factors[i]!, 9);
      expect(factor).toBe(factors[(i + 32) % 64]);
    });
  });

  it("changes nothing where inputs are few or alike", async () => {
    const quantizer = await awq.create({ leastTokens: 161 }, undefined);
    expect(await quantizer.scaleInputs?.(asked)).toBeUndefined();
    expect((await quantizer.quantize({ ...readers[0]!, inputs: sums })).fallback).toContain(
      "160 inputs, fewer than 161",
    );
    const alike = { ...sums, magnitude: sums.magnitude.map(() => 5) };
    const other = await awq.create({}, undefined);
    expect(await other.scaleInputs?.({ ...asked, inputs: alike })).toBeUndefined();
  });

  it("clips by inputs, or rounds as GPTQ does", async () => {
    const given = { ...request(16, 64, {}, 8), inputs: sums };
    const error = async (quantizer: Awaited<ReturnType<typeof awq.create>>) =>
      outputError(given.weights, dequantizeMatrix((await quantizer.quantize(given)).matrix), inputs);
    const plain = await error(await rtn.create({}, undefined));
    expect(await error(await awq.create({}, undefined))).toBeLessThan(plain);
    const both = await (await awq.create({ rounding: "gptq" }, undefined)).quantize(given);
    expect(both).toEqual(await (await gptq.create({}, undefined)).quantize(given));
  });
});
