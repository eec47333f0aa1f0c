import { encodeValues } from "@coppice/checkpoint";
import { roundToDtype } from "@coppice/core";
import { type GgufTensorType, tensorBytes, tensorTypes } from "./tensor-types.js";

const { abs, floor, fround, max, min, trunc } = Math;

/** From here on, rounding to F16 gives infinity. */
const halfInfinity = 65_520;

/**
 * Values as a GGUF file stores them, in the way of ggml's reference functions (`quantize_row_q8_0_ref`,
 * `quantize_row_q4_0_ref` of ggml-quants.c):
 *
 * - `Q8_0`: per 32 values a scale d = max|x| / 127, stored as F16; code = x / d, rounded to nearest, halves away from 0
 * - `Q4_0`: d = -x / 8 of the value x that is largest in magnitude; code = floor(x / d + 8.5), at most 15; value =
 *   (code - 8) d. Byte j of a block holds the code of value j in its low and of value j + 16 in its high half.
 * Both are computed in float32 as there, so that files are the same to the bit.
 * @param values finite, whole blocks; F16 rounds them in place, unless one is too large
 */
export function encodeTensorValues(type: GgufTensorType, values: Float32Array): EncodedValues {
  if (type === "Q8_0" || type === "Q4_0") {
    const encode = type === "Q8_0" ? encodeByteBlock : encodeHalfByteBlock;
    return encodeBlocks(type, values.length, (from, bytes, to) => encode(values, from, bytes, to));
  }
  const bytes = new Uint8Array(tensorBytes(type, values.length));
  const bad = type === "F16" ? firstTooLarge(values) : -1;
  if (type === "F32") encodeValues("F32", values, bytes);
  else if (bad < 0) encodeHalves(values, bytes);
  return { bytes, bad };
}

export interface EncodedValues {
  readonly bytes: Uint8Array;
  /** Position of a value that F16, or the F16 scale of its block, cannot hold; -1 when there is none. */
  readonly bad: number;
}

function firstTooLarge(values: Float32Array): number {
  for (let i = 0; i < values.length; i++) if (abs(values[i] as number) >= halfInfinity) return i;
  return -1;
}

function encodeHalves(values: Float32Array, bytes: Uint8Array): void {
  roundToDtype(values, "F16");
  encodeValues("F16", values, bytes);
}

/**
 * Blocks of a scale and codes.
 * @param encode writes the codes of the block from value `from` on to `bytes`, from `to` on, and returns its scale
 */
export function encodeBlocks(
  type: GgufTensorType,
  count: number,
  encode: (from: number, bytes: Uint8Array, to: number) => number,
): EncodedValues {
  const { blockValues, blockBytes } = tensorTypes[type];
  const bytes = new Uint8Array(tensorBytes(type, count));
  const scales = new Float32Array(count / blockValues);
  for (let block = 0; block < scales.length; block++) {
    scales[block] = encode(block * blockValues, bytes, block * blockBytes + 2);
  }
  const bad = firstTooLarge(scales);
  const halves = new Uint8Array(scales.length * 2);
  encodeHalves(scales, halves);
  for (let block = 0; block < scales.length; block++) {
    bytes[block * blockBytes] = halves[2 * block] as number;
    bytes[block * blockBytes + 1] = halves[2 * block + 1] as number;
  }
  return { bytes, bad: bad < 0 ? -1 : bad * blockValues };
}

/** Writes the codes of a block, which begin at `to`, and returns its scale. */
type EncodeBlock = (values: Float32Array, from: number, bytes: Uint8Array, to: number) => number;

const encodeByteBlock: EncodeBlock = (values, from, bytes, to) => {
  let largest = 0;
  for (let i = 0; i < 32; i++) largest = max(largest, abs(values[from + i] as number));
  const scale = fround(largest / 127);
  const inverse = invert(scale);
  for (let i = 0; i < 32; i++) {
    const code = fround((values[from + i] as number) * inverse);
    bytes[to + i] = code < 0 ? -floor(0.5 - code) : floor(code + 0.5);
  }
  return scale;
};

const encodeHalfByteBlock: EncodeBlock = (values, from, bytes, to) => {
  let largest = 0;
  let magnitude = 0;
  for (let i = 0; i < 32; i++) {
    const value = values[from + i] as number;
    if (abs(value) <= magnitude) continue;
    magnitude = abs(value);
    largest = value;
  }
  const scale = fround(largest / -8);
  const inverse = invert(scale);
  const code = (value: number) => min(15, trunc(fround(fround(value * inverse) + 8.5)));
  for (let j = 0; j < 16; j++) {
    const low = code(values[from + j] as number);
    const high = code(values[from + j + 16] as number);
    bytes[to + j] = low | (high << 4);
  }
  return scale;
};

/** 1 / scale in float32; 0 for scales so small that F16 stores 0. */
function invert(scale: number): number {
  const inverse = fround(1 / scale);
  return Number.isFinite(inverse) ? inverse : 0;
}
