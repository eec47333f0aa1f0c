import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  checkQuantizedFormat,
  dequantizeMatrix,
  packBits,
  type QuantizedFormat,
  type QuantizedMatrix,
  quantizedBytes,
  quantizedGroups,
  unpackBits,
} from "../src/index.js";

const bits = fc.constantFrom<2 | 4 | 8>(2, 4, 8);

/** Codes of a row as one big number in base 2^bits, the first code its lowest digit. */
function bigRow(codes: Uint8Array, bits: number): bigint {
  return codes.reduceRight((sum, code) => (sum << BigInt(bits)) | BigInt(code), 0n);
}

describe("packBits", () => {
  it("writes rows as little-endian numbers in base 2^bits, and unpackBits reads them", () => {
    fc.assert(
      fc.property(bits, fc.nat(3), fc.integer({ min: 1, max: 41 }), fc.nat(), (bits, more, count, seed) => {
        const rows = more + 1;
        const values = Uint8Array.from(
          { length: rows * count },
          (_, i) => ((i + 1) * (seed + 7) * 2654435761) % 2 ** bits,
        );
        const packed = packBits(values, rows, bits);
        const width = Math.ceil((count * bits) / 8);
        expect(packed.length).toBe(rows * width);
        for (let row = 0; row < rows; row++) {
          const found = bigRow(packed.subarray(row * width, (row + 1) * width), 8);
          expect(found).toBe(bigRow(values.subarray(row * count, (row + 1) * count), bits));
        }
        expect(unpackBits(packed, rows, count, bits)).toEqual(values);
      }),
    );
  });
});

describe("dequantizeMatrix", () => {
  it("is (q - z) * s for every element", () => {
    fc.assert(
      fc.property(
        bits,
        fc.constantFrom(...quantizedGroups),
        fc.boolean(),
        fc.nat(),
        (bits, groupSize, symmetric, seed) => {
          const [rows, groups] = [3, 3];
          const columns = groups * groupSize;
          const random = (i: number) => ((i + 1) * (seed + 11) * 2246822519) % 2 ** bits;
          const codes = Uint8Array.from({ length: rows * columns }, (_, i) => random(i));
          const zeros = Uint8Array.from({ length: rows * groups }, (_, i) => random(i + 5));
          const scales = Float32Array.from({ length: rows * groups }, (_, i) => Math.sin(i + seed));
          const matrix: QuantizedMatrix = {
            rows,
            columns,
            bits,
            groupSize,
            codes: packBits(codes, rows * groups, bits),
            scales,
            ...(!symmetric && { zeroPoints: packBits(zeros, rows, bits) }),
          };
          const values = dequantizeMatrix(matrix);
          for (let i = 0; i < values.length; i++) {
            const group = Math.floor(i / columns) * groups + Math.floor((i % columns) / groupSize);
            const zero = symmetric ? 2 ** (bits - 1) : (zeros[group] as number);
            expect((values[i] as number) + 0).toBe(
              Math.fround(((codes[i] as number) - zero) * (scales[group] as number)) + 0,
            );
          }
          const format: QuantizedFormat = { bits, groupSize, symmetric };
          const stored = matrix.codes.length + 2 * scales.length + (matrix.zeroPoints?.length ?? 0);
          expect(quantizedBytes(format, rows, columns)).toBe(stored);
        },
      ),
    );
  });
});

describe("checkQuantizedFormat", () => {
  const check =
    (format: object, columns = 96) =>
    () =>
      checkQuantizedFormat(
        { bits: 4, groupSize: 32, symmetric: true, ...format } as QuantizedFormat,
        columns,
        "w",
      );

  it("accepts what is executed and refuses the rest with what would fit", () => {
    expect(check({})).not.toThrow();
    expect(check({ bits: 3 })).toThrow("w cannot have 3 bits per weight, expected 2, 4, 8");
    expect(check({ groupSize: 48 })).toThrow("w cannot have groups of 48, expected 16, 32, 64, 128, 256");
    expect(check({ groupSize: 64 })).toThrow(
      expect.objectContaining({
        code: "COPPICE_USAGE",
        message: "groups of 64 do not divide the 96 columns of w",
        hint: "groups of 16, 32 do",
      }),
    );
    expect(check({}, 40)).toThrow(expect.objectContaining({ hint: "leave this matrix as it is" }));
  });
});
