import { quantizeBlocks, Rng, roundToStored, type TensorRef } from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

function fp8(rows: number, columns: number, block: [number, number]): TensorRef {
  const shape = [Math.ceil(rows / block[0]), Math.ceil(columns / block[1])];
  const scales: TensorRef = { name: "s", dtype: "F32", shape, file: "f", begin: 0, end: 0 };
  return {
    name: "w",
    dtype: "F8_E4M3",
    shape: [rows, columns],
    file: "f",
    begin: 0,
    end: rows * columns,
    scales: { format: "scaled", stored: [rows, columns], rows: block[0], columns: block[1], scales },
  };
}

function mxfp4(rows: number, columns: number): TensorRef {
  const scales: TensorRef = {
    name: "s",
    dtype: "U8",
    shape: [rows, columns / 32],
    file: "f",
    begin: 0,
    end: 0,
  };
  return {
    name: "w",
    dtype: "U8",
    shape: [rows, columns],
    file: "f",
    begin: 0,
    end: (rows * columns) / 2,
    scales: { format: "mxfp4", stored: [rows, columns], rows: 1, columns: 32, scales },
  };
}

const random = (count: number, seed = 1, gain = 1) => {
  const rng = Rng.fromSeed(seed);
  return Float32Array.from({ length: count }, () => gain * rng.normal());
};

/** Every value that FP8 E4M3 holds, by its bits. */
const float8 = Array.from({ length: 127 }, (_, code) => {
  const exponent = code >> 3;
  const fraction = (code & 7) / 8;
  return exponent === 0 ? fraction * 2 ** -6 : (1 + fraction) * 2 ** (exponent - 7);
});
const float4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

const nearest = (value: number, grid: readonly number[]) =>
  Math.min(...grid.map((other) => Math.abs(Math.abs(value) - other)));

describe("quantizeBlocks", () => {
  test("takes the scale of a block from its largest value, blocks at the edges included", () => {
    const ref = fp8(5, 7, [2, 3]);
    const values = random(35);
    const { codes, scales } = quantizeBlocks(values, ref);
    expect(scales).toHaveLength(9);
    for (let r = 0; r < 5; r++) {
      for (let c = 0; c < 7; c++) {
        const inBlock = [...values].filter(
          (_, i) =>
            Math.floor(Math.floor(i / 7) / 2) === Math.floor(r / 2) &&
            Math.floor((i % 7) / 3) === Math.floor(c / 3),
        );
        const scale = Math.fround(Math.max(...inBlock.map(Math.abs)) / 448);
        expect(scales[Math.floor(r / 2) * 3 + Math.floor(c / 3)]).toBe(scale);
        const code = codes[r * 7 + c] as number;
        expect(float8).toContain(Math.abs(code));
        const error = Math.abs((values[r * 7 + c] as number) / scale - code);
        expect(error).toBeLessThanOrEqual(nearest((values[r * 7 + c] as number) / scale, float8) + 1e-4);
      }
    }
  });

  test("gives powers of two and FP4 values for mxfp4", () => {
    const ref = mxfp4(3, 64);
    const values = random(192, 2, 3);
    const { codes, scales } = quantizeBlocks(values, ref);
    scales.forEach((scale, block) => {
      const largest = Math.max(...[...values.subarray(block * 32, block * 32 + 32)].map(Math.abs));
      expect(scale).toBe(2 ** (Math.floor(Math.log2(largest)) - 2));
    });
    codes.forEach((code, i) => {
      const scaled = (values[i] as number) / (scales[Math.floor(i / 32)] as number);
      expect(float4).toContain(Math.abs(code));
      if (Math.abs(scaled) <= 6) expect(Math.abs(scaled - code)).toBeCloseTo(nearest(scaled, float4), 6);
      else expect(Math.abs(code)).toBe(6);
    });
  });

  test("rounds ties of FP4 to even mantissas", () => {
    const values = new Float32Array(32);
    values.set([4, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -2.5]);
    const { codes, scales } = quantizeBlocks(values, mxfp4(1, 32));
    expect(scales[0]).toBe(1);
    expect([...codes.subarray(0, 10)]).toEqual([4, 0, 1, 1, 2, 2, 4, 4, -0, -2]);
  });

  test("keeps blocks of zeros", () => {
    for (const ref of [fp8(2, 4, [2, 2]), mxfp4(1, 32)]) {
      const values = new Float32Array((ref.shape[0] as number) * (ref.shape[1] as number));
      roundToStored(values, ref);
      expect([...values].every((value) => value === 0)).toBe(true);
    }
  });

  test("refuses matrices that share their blocks", () => {
    const ref = { ...fp8(2, 4, [4, 4]), view: { offset: 0, strides: [4, 1] } };
    expect(() => quantizeBlocks(new Float32Array(8), ref)).toThrow(
      expect.objectContaining({ code: "COPPICE_FORMAT_DTYPE" }),
    );
  });
});

describe("roundToStored", () => {
  test("leaves what mxfp4 holds as it is", () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom(...float4, ...float4.map((v) => -v)), { minLength: 32, maxLength: 32 }),
        fc.integer({ min: -20, max: 20 }),
        (codes, exponent) => {
          const values = Float32Array.from(codes, (code) => code * 2 ** exponent);
          const rounded = values.slice();
          roundToStored(rounded, mxfp4(1, 32));
          expect([...rounded]).toEqual([...values]);
        },
      ),
    );
  });

  test("is codes times scales, and repeats itself", () => {
    const ref = fp8(6, 10, [4, 4]);
    const values = random(60, 3);
    const { codes, scales } = quantizeBlocks(values, ref);
    const rounded = values.slice();
    roundToStored(rounded, ref);
    rounded.forEach((value, i) => {
      const block = Math.floor(Math.floor(i / 10) / 4) * 3 + Math.floor((i % 10) / 4);
      expect(value).toBe(Math.fround((codes[i] as number) * (scales[block] as number)));
    });
    const again = rounded.slice();
    roundToStored(again, ref);
    again.forEach((value, i) => {
      expect(Math.abs(value - (rounded[i] as number))).toBeLessThanOrEqual(1e-6 * Math.abs(value));
    });
  });

  test("rounds tensors without scales to their dtype", () => {
    const values = Float32Array.of(1 + 2 ** -9);
    roundToStored(values, { name: "w", dtype: "BF16", shape: [1], file: "f", begin: 0, end: 2 });
    expect(values[0]).toBe(1);
  });
});
