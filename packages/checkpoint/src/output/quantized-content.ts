import {
  CoppiceError,
  dtypeBytes,
  elementCount,
  mergeRows,
  quantizeBlocks,
  type TensorRef,
  type TensorScales,
} from "@coppice/core";
import { encodeValues, firstNonFinite } from "../decode.js";
import { encodeFloat4, encodePowers } from "../float4.js";
import { matrixRows } from "../matrix-rows.js";
import type { SourceCache } from "../source-cache.js";
import { elementBytes } from "../stored-elements.js";
import { createWeightReader } from "../weight-reader.js";
import { type Content, type MergeScratch, mergeOverflow } from "./content.js";

/** Values that are merged at once, unless one row of blocks has more. */
const bandValues = 1 << 19;

/**
 * Codes or scales of the weighted sum of quantized matrices: computed in float32 (`mergeRows`) and quantized anew
 * (`quantizeBlocks`), which is what `roundToStored` gives, bit by bit. Works in bands of whole blocks, so that memory
 * does not grow with the matrices; only scales that reach over all rows need them all.
 * @param refs matrices of one geometry, each with scales
 * @param stored geometry and dtypes of the result
 */
export function quantizedContent(
  sources: SourceCache,
  scratch: MergeScratch,
  refs: readonly TensorRef[],
  coefficients: readonly number[],
  stored: TensorRef,
  part: "codes" | "scales",
  name: string,
): Content {
  const reader = createWeightReader(sources);
  const { shape, scales } = stored as TensorRef & { scales: TensorScales };
  const [height, width] = shape as [number, number];
  const bandRows = Math.min(
    height,
    scales.rows * Math.max(1, Math.floor(bandValues / (scales.rows * width))),
  );
  const bytesOf = (ref: TensorRef) =>
    part === "codes"
      ? elementCount(ref.shape) * elementBytes(ref)
      : elementCount((ref.scales as TensorScales).scales.shape) *
        dtypeBytes[(ref.scales as TensorScales).scales.dtype];
  const full = bytesOf(band(stored, 0, bandRows));
  let latest: { index: number; bytes: Uint8Array } | undefined;
  const compute = async (index: number, signal: AbortSignal | undefined): Promise<Uint8Array> => {
    const first = index * bandRows;
    const rows = Math.min(bandRows, height - first);
    const values: Float32Array[] = [];
    for (const [position, ref] of refs.entries()) {
      const into = scratch.floats(2 * position + 2, rows * width);
      values.push(await reader.read(band(ref, first, rows), { into, ...(signal && { signal }) }));
    }
    const merged = scratch.floats(0, rows * width);
    mergeRows(values, coefficients, merged);
    const bad = firstNonFinite(merged);
    if (bad >= 0) throw mergeOverflow(name, first * width + bad);
    const target = band(stored, first, rows);
    const result = quantizeBlocks(merged, target);
    const bytes = new Uint8Array(bytesOf(target));
    if (part === "codes") {
      if (scales.format === "mxfp4") encodeFloat4(result.codes, bytes);
      else encodeValues(stored.dtype, result.codes, bytes);
    } else if (scales.format === "mxfp4") encodePowers(result.scales, bytes);
    else encodeValues(scales.scales.dtype, result.scales, bytes);
    return bytes;
  };
  return {
    bytes: bytesOf(stored),
    fill: async (offset, into, signal) => {
      for (let at = 0; at < into.length; ) {
        const index = Math.floor((offset + at) / full);
        if (latest?.index !== index) latest = { index, bytes: await compute(index, signal) };
        const from = offset + at - index * full;
        const piece = latest.bytes.subarray(from, from + into.length - at);
        into.set(piece, at);
        at += piece.length;
      }
    },
  };
}

/** Whole blocks of rows, which share scales with no others. */
function band(ref: TensorRef, first: number, rows: number): TensorRef {
  return matrixRows(ref, first, rows) as TensorRef;
}

/**
 * Codes and scales of one expert as the matrix that they make. The sizes of the blocks follow from the shapes, unless
 * several blocks lie in both directions: then they are `block`.
 * @param codes [R, C] in F8, or U8 pairs of FP4 values in blocks of 32 (MXFP4) with R first
 * @throws COPPICE_FORMAT_SHAPE when the scales do not fit the codes
 */
export function quantizedMatrix(
  codes: TensorRef,
  scales: TensorRef,
  block: readonly [rows: number, columns: number] | undefined,
): TensorRef {
  const isFloat4 = codes.dtype === "U8";
  const [rows = 1] = codes.shape;
  const columns = (elementCount(codes.shape) * (isFloat4 ? 2 : 1)) / rows;
  const count = elementCount(scales.shape);
  const [down, across] =
    count === 1
      ? [1, 1]
      : scales.shape.length > 1
        ? [scales.shape[0] as number, count / (scales.shape[0] as number)]
        : count === rows
          ? [rows, 1]
          : [1, count];
  const sizes = isFloat4
    ? [1, 32]
    : [
        down === 1 ? rows : down === rows ? 1 : (block?.[0] ?? 0),
        across === 1 ? columns : across === columns ? 1 : (block?.[1] ?? 0),
      ];
  const [high, wide] = sizes as [number, number];
  if (Math.ceil(rows / high) !== down || Math.ceil(columns / wide) !== across) {
    throw new CoppiceError(
      "COPPICE_FORMAT_SHAPE",
      `${scales.name} has [${scales.shape.join(", ")}] scales, which do not fit ${codes.name} with ` +
        `[${rows}, ${columns}] values in blocks of ${high} x ${wide}`,
      { details: { codes: codes.name, scales: scales.name } },
    );
  }
  return {
    ...codes,
    shape: [rows, columns],
    scales: {
      format: isFloat4 ? "mxfp4" : "scaled",
      stored: [rows, columns],
      rows: high,
      columns: wide,
      scales,
    },
  };
}
