import { dtypeBytes, elementCount, quantizeBlocks, type TensorRef, type TensorScales } from "@coppice/core";
import { encodeRounded, encodeValues, firstNonFinite } from "../decode.js";
import { encodeFloat4, encodePowers } from "../float4.js";
import { matrixRows } from "../matrix-rows.js";
import { elementBytes } from "../stored-elements.js";
import { type Content, mergeOverflow } from "./content.js";
import type { MergedMatrix } from "./merged-matrix.js";

/** Which bytes of a stored matrix are wanted: its values in its dtype, or the two halves of a quantized one. */
export type MatrixPart = "plain" | "codes" | "scales";

/**
 * A computed matrix as it is stored: rounded to its dtype or quantized anew (`quantizeBlocks`), which is what
 * `roundToStored` gives, bit by bit. Works in bands of whole blocks, so that memory does not grow with the matrix; only
 * scales that reach over all rows need them all.
 * @param stored geometry and dtypes of the result, [R, C]
 * @param name of the result, for messages
 */
export function mergedContent(
  matrix: MergedMatrix,
  stored: TensorRef,
  part: MatrixPart,
  name: string,
): Content {
  const [height, width] = stored.shape as [number, number];
  const { bandRows } = matrix;
  const full = bytesOf(band(stored, 0, bandRows), part);
  let latest: { index: number; bytes: Uint8Array } | undefined;
  const compute = async (index: number, signal: AbortSignal | undefined): Promise<Uint8Array> => {
    const first = index * bandRows;
    const rows = Math.min(bandRows, height - first);
    const values = await matrix.rows(first, rows, signal);
    const target = band(stored, first, rows);
    const bytes = new Uint8Array(bytesOf(target, part));
    const bad = part === "plain" ? encodeRounded(stored.dtype, values, bytes) : firstNonFinite(values);
    if (bad >= 0) throw mergeOverflow(name, first * width + bad);
    if (part !== "plain") encodeQuantized(values, target, part, bytes);
    return bytes;
  };
  return {
    bytes: bytesOf(stored, part),
    fill: async (offset, into, signal) => {
      for (let at = 0; at < into.length; ) {
        const index = Math.floor((offset + at) / full);
        if (latest?.index !== index) latest = { index, bytes: await compute(index, signal) };
        const from = offset + at - index * full;
        const piece = latest.bytes.subarray(from, from + into.length - at);
        into.set(piece, at);
        at += piece.length;
      }
      // Contents of a whole checkpoint are held until it is written.
      if (offset + into.length === bytesOf(stored, part)) latest = undefined;
    },
  };
}

function encodeQuantized(
  values: Float32Array,
  stored: TensorRef,
  part: "codes" | "scales",
  bytes: Uint8Array,
): void {
  const { format, scales } = stored.scales as TensorScales;
  const result = quantizeBlocks(values, stored);
  if (part === "codes") {
    if (format === "mxfp4") encodeFloat4(result.codes, bytes);
    else encodeValues(stored.dtype, result.codes, bytes);
  } else if (format === "mxfp4") encodePowers(result.scales, bytes);
  else encodeValues(scales.dtype, result.scales, bytes);
}

function bytesOf(ref: TensorRef, part: MatrixPart): number {
  if (part !== "scales") return elementCount(ref.shape) * elementBytes(ref);
  const { scales } = ref.scales as TensorScales;
  return elementCount(scales.shape) * dtypeBytes[scales.dtype];
}

/** Whole blocks of rows, which share scales with no others. */
function band(ref: TensorRef, first: number, rows: number): TensorRef {
  return matrixRows(ref, first, rows) as TensorRef;
}
