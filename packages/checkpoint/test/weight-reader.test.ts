import { memoryFolder } from "@coppice/checkpoint";
import { type DType, dtypeBytes, elementCount, Rng, type TensorRef, type TensorScales } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { SourceCache } from "../src/source-cache.js";
import { createWeightReader } from "../src/weight-reader.js";
import { expectError } from "./helpers.js";

/** A file of random bytes in which no float is NaN or infinite, and refs into it. */
function fileOf(size: number) {
  const rng = Rng.fromSeed(3);
  const bytes = Uint8Array.from({ length: size }, () => rng.integer(120) + (rng.integer(2) ? 128 : 0));
  const reader = createWeightReader(new SourceCache(memoryFolder({ f: bytes })));
  const ref = (dtype: DType, shape: number[], begin: number, more: Partial<TensorRef> = {}): TensorRef => ({
    name: `at ${begin}`,
    dtype,
    shape,
    file: "f",
    begin,
    end: begin + elementCount(shape) * dtypeBytes[dtype],
    ...more,
  });
  return { bytes, reader, ref };
}

const word = new DataView(new ArrayBuffer(4));

/** The float32 whose upper half this is. */
function upperHalf(bits: number): number {
  word.setUint16(0, bits);
  return word.getFloat32(0);
}

/** Values of 8-bit floats by the definition of the formats. */
function float8(code: number, exponentBits: number): number {
  const mantissaBits = 7 - exponentBits;
  const exponent = (code >> mantissaBits) % 2 ** exponentBits;
  const fraction = (code % 2 ** mantissaBits) / 2 ** mantissaBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  const magnitude = exponent === 0 ? fraction * 2 ** (1 - bias) : (1 + fraction) * 2 ** (exponent - bias);
  return code >= 128 ? -magnitude : magnitude;
}

const float4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];

describe("views", () => {
  const width = 1000;
  const height = 700;
  const cases: [string, number[], number, number[]][] = [
    ["even columns, transposed", [width / 2, height], 0, [2, width]],
    ["odd columns, transposed", [width / 2, height], 1, [2, width]],
    ["the right half, transposed", [width / 2, height], width / 2, [1, width]],
    ["the lower half of the rows", [height / 2, width], (height / 2) * width, [width, 1]],
    ["every second row", [height / 2, width], width, [2 * width, 1]],
    ["the transposed whole", [width, height], 0, [1, width]],
    ["a column", [height], 7, [width]],
    ["one value", [1, 1], 12, [1, 1]],
  ];
  for (const dtype of ["BF16", "F32"] as const) {
    const size = dtypeBytes[dtype];
    const { bytes, reader, ref } = fileOf(8 + width * height * size);
    for (const [label, shape, offset, strides] of cases) {
      it(`gives ${label} of ${dtype}`, async () => {
        const tensor = ref(dtype, shape, 8, {
          end: 8 + width * height * size,
          view: { offset, strides },
        });
        const values = await reader.read(tensor);
        const data = new DataView(bytes.buffer);
        const stored = (element: number) =>
          dtype === "F32"
            ? data.getFloat32(8 + 4 * element, true)
            : upperHalf(data.getUint16(8 + 2 * element, true));
        const [rows, columns = 1] = shape as [number, number?];
        let wrong = 0;
        for (let i = 0; i < rows; i++) {
          for (let j = 0; j < columns; j++) {
            const element = offset + i * strides[0]! + j * (strides[1] ?? 0);
            if (values[i * columns + j] !== stored(element)) wrong++;
          }
        }
        expect(values).toHaveLength(rows * columns);
        expect(wrong).toBe(0);
      });
    }
  }

  it("judges only the values of the view", async () => {
    const { bytes, reader, ref } = fileOf(64);
    bytes.fill(0x7f, 4, 6);
    const view = (offset: number) => ref("BF16", [8], 0, { end: 64, view: { offset, strides: [4] } });
    expect(await reader.read(view(1))).toHaveLength(8);
    bytes.set([0xc0, 0x7f], 2 * 9);
    await expectError(reader.read(view(1)), "COPPICE_FORMAT_NAN", "NaN at [2]");
    await expectError(reader.read(view(29)), "COPPICE_INTERNAL", "32 stored elements do not fit");
  });
});

describe("scales", () => {
  const { bytes, reader, ref } = fileOf(3_000_000);
  const data = new DataView(bytes.buffer);
  const codesAt = 600_000;
  const scaleValue = (dtype: DType, block: number) =>
    dtype === "F32" ? data.getFloat32(4 * block, true) : 2 ** (bytes[block]! - 127);
  /** Harmless scales: random bits give products beyond float32. */
  for (let i = 0; i < 4000; i++) data.setFloat32(4 * i, Math.fround(0.003 + i / 977), true);

  const geometries: [string, number, number, number, number][] = [
    ["blocks of 128 x 128 with cut edges", 300, 700, 128, 128],
    ["a scale per row", 300, 700, 1, 700],
    ["a scale per column", 300, 700, 300, 1],
    ["one scale", 300, 700, 300, 700],
    ["blocks of 1 x 64 over several reads", 1500, 1000, 1, 640],
  ];
  for (const [label, height, width, rows, columns] of geometries) {
    for (const [dtype, exponentBits] of [
      ["F8_E4M3", 4],
      ["F8_E5M2", 5],
    ] as const) {
      it(`multiplies ${dtype} by ${label}`, async () => {
        const [down, across] = [Math.ceil(height / rows), Math.ceil(width / columns)];
        const tensor = ref(dtype, [height, width], codesAt, {
          scales: {
            format: "scaled",
            stored: [height, width],
            rows,
            columns,
            scales: ref("F32", [down, across], 0),
          },
        });
        const values = await reader.read(tensor);
        let wrong = 0;
        for (let i = 0; i < height; i++) {
          for (let j = 0; j < width; j++) {
            const code = float8(bytes[codesAt + i * width + j]!, exponentBits);
            const block = Math.floor(i / rows) * across + Math.floor(j / columns);
            if (values[i * width + j] !== Math.fround(code * scaleValue("F32", block))) wrong++;
          }
        }
        expect(wrong).toBe(0);
      });
    }
  }

  it("gives every second row of MXFP4 blocks", async () => {
    const [height, width] = [90, 96];
    const at = 2048;
    for (let i = 0; i < (height * width) / 32; i++) bytes[i] = 100 + (i % 50);
    for (const offset of [0, width]) {
      const tensor = ref("U8", [height / 2, width], at, {
        end: at + (height * width) / 2,
        view: { offset, strides: [2 * width, 1] },
        scales: mxfp4(height, width, ref("U8", [height, 3], 0)),
      });
      const values = await reader.read(tensor);
      const expected = values.map((_, i) => {
        const element = offset + Math.floor(i / width) * 2 * width + (i % width);
        const pair = bytes[at + Math.floor(element / 2)]!;
        return float4[element % 2 ? pair >> 4 : pair % 16]! * scaleValue("U8", Math.floor(element / 32));
      });
      expect(values).toEqual(expected);
    }
    bytes[4] = 255;
    const bad = ref("U8", [height, width], at, {
      end: at + (height * width) / 2,
      scales: mxfp4(height, width, ref("U8", [height, 3], 0)),
    });
    await expectError(reader.read(bad), "COPPICE_FORMAT_NAN", "at 0 in f holds NaN at [1, 1]");
    const short = { ...bad, scales: mxfp4(height, width, ref("U8", [height, 2], 0)) };
    await expectError(reader.read(short), "COPPICE_INTERNAL", "its 270 blocks have 180 scales");
  });

  function mxfp4(height: number, width: number, scales: TensorRef): TensorScales {
    return { format: "mxfp4", stored: [height, width], rows: 1, columns: 32, scales };
  }
});
