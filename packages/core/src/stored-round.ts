import { roundToDtype } from "./dtype-round.js";
import { CoppiceError } from "./errors.js";
import type { TensorRef, TensorScales } from "./tensor.js";

/** Values in their stored form: value [r, c] is code [r, c] times the scale of its block. */
export interface QuantizedBlocks {
  /** As many as values, each one that the stored dtype holds. */
  readonly codes: Float32Array;
  /** Row by row of blocks, rounded to the dtype of the scales; for `mxfp4` powers of two. */
  readonly scales: Float32Array;
}

/**
 * Rounds computed values in place to those that `ref` can hold as it is stored: to its dtype, or in its blocks. Whoever
 * merges weights for evaluation calls it, so that what is evaluated is what an export stores, bit by bit.
 * @param values as many as `ref` has, finite
 * @throws COPPICE_FORMAT_DTYPE when the storage has no such rounding (integers without known scales)
 */
export function roundToStored(values: Float32Array, ref: TensorRef): void {
  if (!ref.scales) {
    roundToDtype(values, ref.dtype);
    return;
  }
  const { codes, scales } = quantizeBlocks(values, ref);
  const [rows, columns] = blockOf(ref, ref.scales);
  const width = ref.shape[1] as number;
  const across = Math.ceil(width / columns);
  for (let i = 0; i < values.length; i++) {
    const block = Math.floor(i / width / rows) * across + Math.floor((i % width) / columns);
    values[i] = (codes[i] as number) * (scales[block] as number);
  }
}

/** Largest magnitude of FP8 E4M3, and of FP4 E2M1, whose largest power of two is 4. */
const largestFloat8 = 448;
const largestFloat4 = 6;
const exponentFloat4 = 2;

/**
 * Quantizes values [R, C] anew in the blocks of `ref`. `scaled`: each scale is the largest magnitude of its block over
 * 448, rounded to the dtype of the scales, as DeepSeek-V3's own conversion does; `mxfp4`: the power of two of OCP
 * Microscaling Formats 1.0, section 6.3. Codes are rounded to nearest, ties to even.
 * @throws COPPICE_FORMAT_DTYPE when `ref` shares blocks with another tensor or is stored in another dtype
 */
export function quantizeBlocks(values: Float32Array, ref: TensorRef): QuantizedBlocks {
  const scales = ref.scales as TensorScales;
  const [rows, columns] = blockOf(ref, scales);
  const [height, width] = ref.shape as [number, number];
  const across = Math.ceil(width / columns);
  const codes = new Float32Array(values.length);
  const factors = new Float32Array(Math.ceil(height / rows) * across);
  for (let i = 0; i < values.length; i++) {
    const block = Math.floor(i / width / rows) * across + Math.floor((i % width) / columns);
    factors[block] = Math.max(factors[block] as number, Math.abs(values[i] as number));
  }
  const isFloat4 = scales.format === "mxfp4";
  for (let block = 0; block < factors.length; block++) {
    const largest = factors[block] as number;
    // 2 ** floor(log2(x)) by the float's exponent bits: Math.log2 may round across a power of two.
    factors[block] = isFloat4
      ? 2 ** Math.max(-127, exponentOf(largest) - exponentFloat4)
      : largest / largestFloat8;
  }
  if (!isFloat4) {
    roundToDtype(factors, scales.scales.dtype);
    for (let block = 0; block < factors.length; block++) if (factors[block] === 0) factors[block] = 1;
  }
  for (let i = 0; i < values.length; i++) {
    const block = Math.floor(i / width / rows) * across + Math.floor((i % width) / columns);
    codes[i] = (values[i] as number) / (factors[block] as number);
  }
  if (isFloat4) for (let i = 0; i < codes.length; i++) codes[i] = roundToFloat4(codes[i] as number);
  else roundToDtype(codes, ref.dtype);
  return { codes, scales: factors };
}

/** Rows and columns of a block, for tensors that have blocks of their own. */
function blockOf(ref: TensorRef, { format, rows, columns, stored }: TensorScales): [number, number] {
  const whole = !ref.view && stored[0] === ref.shape[0] && stored[1] === ref.shape[1];
  const sameRows = rows === 1 && stored[1] === ref.shape[1] && (ref.view?.strides[1] ?? 1) === 1;
  const known = format === "mxfp4" || ref.dtype === "F8_E4M3";
  if (ref.shape.length === 2 && known && (whole || sameRows)) return [rows, columns];
  throw new CoppiceError(
    "COPPICE_FORMAT_DTYPE",
    `computed weights cannot be stored as ${ref.name} is: ${ref.dtype} in blocks of ${rows} x ${columns}` +
      `${whole || sameRows ? "" : " that it shares with another matrix"}`,
    { hint: "plans that only drop experts can be applied", details: { tensor: ref.name, dtype: ref.dtype } },
  );
}

const bits = new Uint32Array(1);
const float = new Float32Array(bits.buffer);

/** floor(log2(value)); -127 for zero and subnormals. */
function exponentOf(value: number): number {
  float[0] = value;
  return (((bits[0] as number) >>> 23) & 0xff) - 127;
}

/** Nearest of ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}, ties to the one with an even mantissa. */
function roundToFloat4(value: number): number {
  const magnitude = Math.min(Math.abs(value), largestFloat4);
  const step = magnitude < 2 ? 0.5 : magnitude < 4 ? 1 : 2;
  const quotient = magnitude / step;
  let whole = Math.floor(quotient);
  const rest = quotient - whole;
  if (rest > 0.5 || (rest === 0.5 && whole % 2 === 1)) whole++;
  return value < 0 || Object.is(value, -0) ? -whole * step : whole * step;
}
