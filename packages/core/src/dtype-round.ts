import { CoppiceError } from "./errors.js";
import type { DType } from "./tensor.js";

/**
 * Rounds float32 values in place to those that `dtype` can hold: to nearest, ties to even, as hardware and PyTorch
 * do. What is evaluated after this call is exactly what a checkpoint of that dtype stores. F32 and F64 leave the
 * values as they are.
 *
 * Values beyond the largest finite one become the largest finite one, so that weights stay finite (PyTorch gives
 * infinity, or NaN for F8_E4M3, which no model survives). NaN stays NaN.
 * @throws COPPICE_FORMAT_DTYPE for integer dtypes, whose values have no meaning without their scales
 */
export function roundToDtype(values: Float32Array, dtype: DType): void {
  if (dtype === "F64" || dtype === "F32") return;
  if (dtype === "BF16") roundToBfloat16(values);
  else if (dtype === "F16") roundToSmallFloat(values, 10, -14, 65504);
  else if (dtype === "F8_E4M3") roundToSmallFloat(values, 3, -6, 448);
  else {
    throw new CoppiceError(
      "COPPICE_FORMAT_DTYPE",
      `computed weights cannot be stored as ${dtype}; expected F64, F32, F16, BF16 or F8_E4M3`,
      { details: { dtype } },
    );
  }
}

/** bfloat16 is the upper half of a float32, subnormals included, so rounding is integer arithmetic. */
function roundToBfloat16(values: Float32Array): void {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i] as number;
    const magnitude = word & 0x7fffffff;
    // From 0x7f7f8000 on, rounding would reach infinity.
    if (magnitude >= 0x7f7f8000) {
      if (magnitude <= 0x7f800000) bits[i] = (word & 0x80000000) | 0x7f7f0000;
      continue;
    }
    bits[i] = (word + 0x7fff + ((word >>> 16) & 1)) & 0xffff0000;
  }
}

/**
 * Formats with fewer exponent bits than float32.
 * @param mantissa stored mantissa bits
 * @param minExponent exponent of the smallest normal value
 * @param max largest finite value
 */
function roundToSmallFloat(values: Float32Array, mantissa: number, minExponent: number, max: number): void {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const shift = 23 - mantissa;
  const half = 2 ** (shift - 1) - 1;
  const mask = -(2 ** shift);
  const smallestNormal = 2 ** minExponent;
  // Adding and subtracting this in float64 rounds to multiples of the smallest subnormal, ties to even.
  const magic = 2 ** (52 + minExponent - mantissa);
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i] as number;
    const magnitude = Math.abs(values[i] as number);
    if (!(magnitude < max)) {
      if (magnitude >= max) values[i] = word >>> 31 ? -max : max;
    } else if (magnitude >= smallestNormal) {
      bits[i] = (word + half + ((word >>> shift) & 1)) & mask;
    } else {
      const rounded = magnitude + magic - magic;
      values[i] = word >>> 31 ? -rounded : rounded;
    }
  }
}
