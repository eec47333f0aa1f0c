import { type DType, isCoppiceError, Rng, roundToDtype } from "@coppice/core";
import { describe, expect, it } from "vitest";

/** Every finite value >= 0 of a format, from its definition: sign, exponent, mantissa. */
function valuesOf(exponentBits: number, mantissaBits: number, bias: number, max: number): number[] {
  const values: number[] = [];
  for (let exponent = 0; exponent < 2 ** exponentBits; exponent++) {
    for (let mantissa = 0; mantissa < 2 ** mantissaBits; mantissa++) {
      const fraction = mantissa / 2 ** mantissaBits;
      const value = exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias);
      if (value <= max) values.push(value);
    }
  }
  return values;
}

const formats: [DType, number[]][] = [
  ["F16", valuesOf(5, 10, 15, 65504)],
  ["F8_E4M3", valuesOf(4, 3, 7, 448)],
  ["BF16", valuesOf(8, 7, 127, 3.3895313892515355e38)],
];

describe("roundToDtype", () => {
  for (const [dtype, values] of formats) {
    it(`gives the nearest ${dtype} value, ties to the even one`, () => {
      const inputs: number[] = [];
      const expected: number[] = [];
      const at = (input: number, output: number) => {
        if (Math.fround(input) !== input) return; // not a float32: nothing to round from
        inputs.push(input, -input);
        expected.push(output, -output);
      };
      for (let i = 0; i + 1 < values.length; i++) {
        const low = values[i] as number;
        const high = values[i + 1] as number;
        const middle = (low + high) / 2;
        at(low, low);
        at(middle, i % 2 === 0 ? low : high);
        at((low + middle) / 2, low);
        at((middle + high) / 2, high);
      }
      const rounded = Float32Array.from(inputs);
      roundToDtype(rounded, dtype);
      expect(inputs.length).toBeGreaterThan(values.length);
      const wrong = inputs.findIndex((_, i) => !Object.is(rounded[i], expected[i]));
      expect(wrong === -1 ? "none" : `${inputs[wrong]} -> ${rounded[wrong]}`).toBe("none");
    });

    it(`keeps ${dtype} finite and leaves what it holds alone`, () => {
      const max = values.at(-1) as number;
      const big = Float32Array.of(3.4e38, -3.4e38, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY);
      roundToDtype(big, dtype);
      expect([...big]).toEqual([max, -max, max, -max]);
      const nan = Float32Array.of(Number.NaN);
      roundToDtype(nan, dtype);
      expect(nan[0]).toBeNaN();
      const rng = Rng.fromSeed(1);
      const once = Float32Array.from({ length: 1000 }, () => rng.normal() * 10 ** (rng.integer(12) - 8));
      roundToDtype(once, dtype);
      const twice = once.slice();
      roundToDtype(twice, dtype);
      expect(twice).toEqual(once);
    });
  }

  it("leaves float32 and float64 alone and refuses integers", () => {
    const values = Float32Array.of(0.1, -1e-40);
    roundToDtype(values, "F32");
    roundToDtype(values, "F64");
    expect(values).toEqual(Float32Array.of(0.1, -1e-40));
    try {
      roundToDtype(values, "I8");
      expect.unreachable();
    } catch (error) {
      expect(isCoppiceError(error, "COPPICE_FORMAT_DTYPE")).toBe(true);
    }
  });
});
