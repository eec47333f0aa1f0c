import { dequantizeMatrix, type QuantizedMatrix, Rng } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { encodeCodes } from "../src/encode-codes.js";
import { encodeTensorValues } from "../src/encode-values.js";
import { tensorTypes } from "../src/tensor-types.js";
import { slowTolerance, slowValues } from "./slow-blocks.js";

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

/** A block of mixed signs, one of zeros, one that F16 cannot scale, one of large values. */
const sample = Float32Array.from({ length: 128 }, (_, i) => {
  const at = i % 32;
  if (i < 32) return (((at * 37) % 64) - 31) * 0.03125 * (at % 2 ? 1 : -1.7);
  if (i < 64) return 0;
  return i < 96 ? 1e-9 * (at - 7) : 3000 * (at - 20);
});

describe("the bytes of the gguf Python package 0.19 (quants.quantize)", () => {
  const zeros = (count: number) => "00".repeat(count);
  it("Q8_0", () => {
    expect(hex(encodeTensorValues("Q8_0", sample.slice()).bytes)).toBe(
      `a4227f0e56272d3f04bddbd5b2ed8905661d3d35144deccbc3e39afb77134e2b2543${zeros(34)}` +
        "0000dbe0e6ebf0f5fb00050b10151a20252a30353a40454a4f555a5f656a6f747a7f625f81878e949aa1a7adb4bac0c7cdd4dae0e7edf3fa00060d131920262c33394046",
    );
  });

  it("Q4_0", () => {
    expect(hex(encodeTensorValues("Q4_0", sample.slice()).bytes)).toBe(
      `96b24057733695b4c8acea8b1d793f5862460080${"88".repeat(16)}00805a5a4a49493938382827271716160605536f6070718182829293a3a4a4b4b5c5c6c6`,
    );
  });
});

describe.each(["F16", "Q8_0", "Q4_0"] as const)("%s", (type) => {
  it("is near the values, block by block", () => {
    const value = fc.oneof(
      fc.float({ min: -60_000, max: 60_000, noNaN: true }),
      fc.float({ min: -1, max: 1, noNaN: true }),
      fc.constantFrom(0, -0, 1e-30, 2 ** -24, -(2 ** -149)),
    );
    const values = fc.array(value, { minLength: 32, maxLength: 32 });
    fc.assert(
      fc.property(values, (block) => {
        const { bytes, bad } = encodeTensorValues(type, Float32Array.from(block));
        expect(bad).toBe(-1);
        const decoded = slowValues(tensorTypes[type].code, bytes, 32);
        // The smallest scale of F16, times the largest code.
        const least = 2 ** -24 * 128;
        for (const [i, one] of block.entries()) {
          const tolerance = slowTolerance(tensorTypes[type].code, block, one);
          expect(Math.abs((decoded[i] as number) - one)).toBeLessThanOrEqual(tolerance * 1.001 + least);
        }
      }),
    );
  });

  it("says which value is too large", () => {
    const largest = { F16: 65_520, Q8_0: 65_520 * 127, Q4_0: 65_520 * 8 }[type];
    const values = new Float32Array(64);
    values[40] = -largest;
    const { bad } = encodeTensorValues(type, values.slice());
    expect(bad).toBe(type === "F16" ? 40 : 32);
    values[40] = -0.99 * largest;
    expect(encodeTensorValues(type, values).bad).toBe(-1);
  });
});

describe("codes of a quantized matrix are kept", () => {
  it.each([
    ["Q8_0", 8, 32],
    ["Q8_0", 8, 64],
    ["Q4_0", 4, 32],
    ["Q4_0", 4, 128],
  ] as const)("%s of %d bits in groups of %d", (type, bits, groupSize) => {
    const rng = Rng.fromSeed(bits + groupSize);
    const [rows, columns] = [3, 256];
    const random = (count: number, value: () => number) => Array.from({ length: count }, value);
    const matrix: QuantizedMatrix = {
      rows,
      columns,
      bits,
      groupSize,
      codes: Uint8Array.from(random((rows * columns * bits) / 8, () => rng.integer(256))),
      // Of few bits, so that F16 holds them.
      scales: Float32Array.from(random((rows * columns) / groupSize, () => (1 + rng.integer(64)) / 512)),
    };
    const values = dequantizeMatrix(matrix);
    const { bytes, bad } = encodeCodes(type, matrix);
    expect(bad).toBe(-1);
    expect(slowValues(tensorTypes[type].code, bytes, values.length)).toEqual(
      Array.from(values, (one) => one + 0),
    );
  });
});
