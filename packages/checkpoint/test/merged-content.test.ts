import { type ByteSource, memoryFolder, type UnitPlaces } from "@coppice/checkpoint";
import {
  mergeRows,
  mergeUnitColumns,
  mergeUnitRows,
  quantizeBlocks,
  Rng,
  type TensorRef,
  type UnitSource,
} from "@coppice/core";
import { describe, expect, it } from "vitest";
import { MergeScratch } from "../src/output/content.js";
import { mergedContent } from "../src/output/merged-content.js";
import { linearMatrix, type MergedMatrix, unitMatrix } from "../src/output/merged-matrix.js";
import { quantizedMatrix } from "../src/output/quantized-matrix.js";
import { SourceCache } from "../src/source-cache.js";
import { createWeightReader } from "../src/weight-reader.js";
import { expectError } from "./helpers.js";

const rng = Rng.fromSeed(6);

/** Two matrices with their scales in one file. */
function sources(codes: Pick<TensorRef, "dtype" | "shape">, codeBytes: number, scales: TensorRef) {
  const scaleBytes = scales.end - scales.begin;
  const bytes = Uint8Array.from({ length: 2 * (codeBytes + scaleBytes) }, () => rng.integer(100));
  const view = new DataView(bytes.buffer);
  const at = (
    name: string,
    base: Pick<TensorRef, "dtype" | "shape">,
    begin: number,
    size: number,
  ): TensorRef => {
    return { ...base, name, file: "f", begin, end: begin + size };
  };
  const pairs = [0, 1].map((i) => {
    const begin = i * scaleBytes;
    for (let j = 0; scales.dtype === "F32" && j < scaleBytes; j += 4)
      view.setFloat32(begin + j, rng.uniform(), true);
    return {
      scales: at(`s${i}`, scales, begin, scaleBytes),
      codes: at(`c${i}`, codes, 2 * scaleBytes + i * codeBytes, codeBytes),
    };
  });
  return { cache: new SourceCache(memoryFolder({ f: bytes })), pairs };
}

/** A cache that counts the bytes that are read through it. */
function counting(cache: SourceCache) {
  const counter = { bytes: 0 };
  const counted = {
    use: (name: string, work: (source: ByteSource) => Promise<unknown>) =>
      cache.use(name, (source) =>
        work({
          ...source,
          read: (at, into, options) => {
            counter.bytes += into.length;
            return source.read(at, into, options);
          },
        }),
      ),
  } as unknown as SourceCache;
  return { counter, counted };
}

const scalesOf = (dtype: "F32" | "U8", shape: number[]): TensorRef => {
  const bytes = shape.reduce((a, b) => a * b, 1) * (dtype === "F32" ? 4 : 1);
  return { name: "", dtype, shape, file: "f", begin: 0, end: bytes };
};

describe("mergedContent", () => {
  const [R, C] = [900, 1100];
  for (const [label, codes, codeBytes, scales] of [
    ["fp8 in blocks", { dtype: "F8_E4M3", shape: [R, C] }, R * C, scalesOf("F32", [8, 9])],
    ["fp8 with a scale per column", { dtype: "F8_E4M3", shape: [R, C] }, R * C, scalesOf("F32", [1, C])],
    ["MXFP4", { dtype: "U8", shape: [R, 36, 16] }, (R * 1152) / 2, scalesOf("U8", [R, 36])],
  ] as const) {
    it(`gives the same bytes in bands and pieces of any size as a matrix in one: ${label}`, async () => {
      const { cache, pairs } = sources(codes, codeBytes, scales);
      const refs = pairs.map((pair) => quantizedMatrix(pair.codes, pair.scales, [128, 128]));
      const [stored] = refs as [TensorRef];
      const reader = createWeightReader(cache);
      const values = await Promise.all(refs.map((ref) => reader.read(ref)));
      const merged = new Float32Array(values[0]!.length);
      mergeRows(values, [0.75, -0.5], merged);
      const whole = quantizeBlocks(merged, stored);
      const read = async (part: "codes" | "scales", pieces: number) => {
        const memory = { sources: cache, scratch: new MergeScratch() };
        const content = mergedContent(linearMatrix(memory, refs, [0.75, -0.5], stored), stored, part, "x");
        const bytes = new Uint8Array(content.bytes);
        const size = Math.ceil(content.bytes / pieces / 4) * 4;
        for (let at = 0; at < bytes.length; at += size)
          await content.fill(at, bytes.subarray(at, at + size), undefined);
        return bytes;
      };
      const [codeParts, scaleParts] = [await read("codes", 7), await read("scales", 5)];
      expect(Buffer.compare(codeParts, await read("codes", 1))).toBe(0);
      expect(Buffer.compare(scaleParts, await read("scales", 1))).toBe(0);
      // What is written, read again, is codes times scales of the whole.
      const again = createWeightReader(new SourceCache(memoryFolder({ c: codeParts, s: scaleParts })));
      const found = await again.read({
        ...stored,
        file: "c",
        begin: 0,
        end: codeParts.length,
        scales: {
          ...stored.scales!,
          scales: { ...stored.scales!.scales, file: "s", begin: 0, end: scaleParts.length },
        },
      });
      const { rows, columns, stored: size } = stored.scales!;
      const across = Math.ceil(size[1] / columns);
      let wrong = 0;
      for (let i = 0; i < found.length; i++) {
        const block =
          Math.floor(Math.floor(i / size[1]) / rows) * across + Math.floor((i % size[1]) / columns);
        if (found[i] !== Math.fround(whole.codes[i]! * whole.scales[block]!)) wrong++;
      }
      expect(wrong).toBe(0);
    });
  }

  it("refuses scales that do not fit, and merges beyond float32", async () => {
    const { cache, pairs } = sources(
      { dtype: "F8_E4M3", shape: [300, 300] },
      90_000,
      scalesOf("F32", [3, 2]),
    );
    const [pair] = pairs as [(typeof pairs)[0]];
    await expectError(
      () => quantizedMatrix(pair.codes, pair.scales, [128, 128]),
      "COPPICE_FORMAT_SHAPE",
      "s0 has [3, 2] scales, which do not fit c0 with [300, 300] values in blocks of 128 x 128",
    );
    const ref = quantizedMatrix(pair.codes, pair.scales, [128, 150]);
    const memory = { sources: cache, scratch: new MergeScratch() };
    const content = mergedContent(linearMatrix(memory, [ref, ref], [1e38, 1e38], ref), ref, "codes", "x");
    await expectError(
      content.fill(0, new Uint8Array(content.bytes), undefined),
      "COPPICE_PLAN_EXPORT",
      "the merged tensor x exceeds",
    );
  });
});

describe("unitMatrix", () => {
  const [R, C] = [300, 320];
  const both = { dtype: "F8_E4M3", shape: [R, C] } as const;
  const formats: [string, Pick<TensorRef, "dtype" | "shape">, number, TensorRef | undefined][] = [
    ["BF16", { dtype: "BF16", shape: [R, C] }, 2 * R * C, undefined],
    ["fp8 in blocks", both, R * C, scalesOf("F32", [3, 3])],
    ["fp8 with a scale per row", both, R * C, scalesOf("F32", [R, 1])],
    ["MXFP4", { dtype: "U8", shape: [R, C / 32, 16] }, (R * C) / 2, scalesOf("U8", [R, C / 32])],
  ];
  /** Two experts: one permuted, one with units that are left out or share a place. */
  const units = (width: number): UnitSource[] => [
    { expert: 0, to: rng.sample(width, width), rows: 0.5, columns: 0.5 },
    {
      expert: 1,
      to: Array.from({ length: width }, (_, unit) => (unit % 3 ? rng.integer(width) : -1)),
      rows: Array.from({ length: width }, () => rng.normal()),
      columns: Array.from({ length: width }, () => rng.normal()),
    },
  ];

  for (const [label, codes, codeBytes, scales] of formats) {
    for (const axis of [0, 1] as const) {
      it(`reads each row of axis ${axis} once, in bands, and gives what the whole gives: ${label}`, async () => {
        const { cache, pairs } = sources(codes, codeBytes, scales ?? scalesOf("F32", [1]));
        const refs = pairs.map((pair) =>
          scales ? quantizedMatrix(pair.codes, pair.scales, [128, 128]) : pair.codes,
        );
        const [stored] = refs as [TensorRef];
        const given = units(axis === 0 ? R : C);
        const reader = createWeightReader(cache);
        const whole = await Promise.all(
          refs.map(async (ref, i) => ({ source: given[i]!, values: await reader.read(ref) })),
        );
        const expected = new Float32Array(R * C);
        if (axis === 0) mergeUnitRows(whole, C, expected);
        else mergeUnitColumns(whole, C, expected);
        const { counter, counted } = counting(cache);
        const memory = { sources: counted, scratch: new MergeScratch() };
        const places: UnitPlaces = { axis, matrices: 1, factors: axis === 0 ? "rows" : "columns" };
        const matrix = unitMatrix(memory, given, refs, places, stored, 64 * C);
        const blockRows = label.includes("blocks") ? 128 : 1;
        if (axis === 0) {
          expect(matrix.bandRows).toBeLessThan(R);
          expect(matrix.bandRows % blockRows).toBe(0);
        }
        const found = new Float32Array(R * C);
        for (let first = 0; first < R; first += matrix.bandRows) {
          const count = Math.min(matrix.bandRows, R - first);
          found.set(await matrix.rows(first, count, undefined), first * C);
        }
        expect(Buffer.compare(new Uint8Array(found.buffer), new Uint8Array(expected.buffer))).toBe(0);
        const rows = axis === 0 ? R + given[1]!.to.filter((target) => target >= 0).length : 2 * R;
        if (!scales) expect(counter.bytes).toBe(rows * C * 2);
        const parts = scales ? (["codes", "scales"] as const) : (["plain"] as const);
        for (const part of parts) {
          const content = mergedContent(matrix, stored, part, "x");
          const pieces = new Uint8Array(content.bytes);
          for (let at = 0; at < pieces.length; at += 4096)
            await content.fill(at, pieces.subarray(at, at + 4096), undefined);
          const once: MergedMatrix = { bandRows: R, rows: async () => expected.slice() };
          const bytes = new Uint8Array(content.bytes);
          await mergedContent(once, stored, part, "x").fill(0, bytes, undefined);
          expect(Buffer.compare(pieces, bytes)).toBe(0);
        }
      });
    }
  }
});
