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
  forEachRun(ref.shape[1] as number, rows, columns, values.length, (block, start, end) => {
    const scale = scales[block] as number;
    for (let i = start; i < end; i++) values[i] = (codes[i] as number) * scale;
  });
}

/** Calls `work` for every stretch of a row that lies in one block, from first to last value. */
function forEachRun(
  width: number,
  rows: number,
  columns: number,
  length: number,
  work: (block: number, start: number, end: number) => void,
): void {
  const across = Math.ceil(width / columns);
  for (let row = 0, start = 0; start < length; row++, start += width) {
    let block = Math.floor(row / rows) * across;
    for (let column = 0; column < width; column += columns) {
      work(block++, start + column, start + Math.min(column + columns, width));
    }
  }
}

/** Largest magnitude of FP8 E4M3; the largest power of two of FP4 E2M1 is 4. */
const largestFloat8 = 448;
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
  forEachRun(width, rows, columns, values.length, (block, start, end) => {
    let largest = factors[block] as number;
    for (let i = start; i < end; i++) {
      const magnitude = Math.abs(values[i] as number);
      if (magnitude > largest) largest = magnitude;
    }
    factors[block] = largest;
  });
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
  forEachRun(width, rows, columns, values.length, (block, start, end) => {
    const factor = factors[block] as number;
    for (let i = start; i < end; i++) codes[i] = (values[i] as number) / factor;
  });
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

const float4Values = Float32Array.of(0, 0.5, 1, 1.5, 2, 3, 4, 6);

/** Nearest of ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}; from the middle of two to the one with an even mantissa. */
function roundToFloat4(value: number): number {
  const magnitude = Math.abs(value);
  // The number of borders below it; this is several times faster than dividing by the step.
  const code =
    Number(magnitude > 0.25) +
    Number(magnitude >= 0.75) +
    Number(magnitude > 1.25) +
    Number(magnitude >= 1.75) +
    Number(magnitude > 2.5) +
    Number(magnitude >= 3.5) +
    Number(magnitude > 5);
  const rounded = float4Values[code] as number;
  return rounded * Math.sign(value);
}
