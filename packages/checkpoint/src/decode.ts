import { CoppiceError, type DType, roundToDtype } from "@coppice/core";

/**
 * Widens stored values to float32. The returned position is that of the first value that is not finite, or of
 * the first integer that float32 cannot hold; -1 when all are well.
 * @param bytes little-endian values, aligned to their size
 * @param out as many elements as `bytes` holds
 */
export function decodeValues(dtype: DType, bytes: Uint8Array, out: Float32Array): number {
  switch (dtype) {
    case "F32":
      out.set(new Float32Array(bytes.buffer, bytes.byteOffset, out.length));
      return firstNonFinite(out);
    case "BF16":
      return decodeBfloat16(new Uint16Array(bytes.buffer, bytes.byteOffset, out.length), out);
    case "F16":
      return decodeByTable(new Uint16Array(bytes.buffer, bytes.byteOffset, out.length), halfTable(), out);
    case "F8_E4M3":
      return decodeByTable(bytes, float8Table(), out);
    case "F8_E5M2":
      return decodeByTable(bytes, wideFloat8Table(), out);
    case "F8_E8M0":
      return decodeByTable(bytes, powerTable(), out);
    case "F64":
      out.set(new Float64Array(bytes.buffer, bytes.byteOffset, out.length));
      return firstNonFinite(out);
    case "I64":
      return decodeBigInts(new BigInt64Array(bytes.buffer, bytes.byteOffset, out.length), out);
    case "U64":
      return decodeBigInts(new BigUint64Array(bytes.buffer, bytes.byteOffset, out.length), out);
    case "I32":
      return decodeIntegers(new Int32Array(bytes.buffer, bytes.byteOffset, out.length), out);
    case "U32":
      return decodeIntegers(new Uint32Array(bytes.buffer, bytes.byteOffset, out.length), out);
    case "U16":
      return decodeIntegers(new Uint16Array(bytes.buffer, bytes.byteOffset, out.length), out);
    case "I16":
      return decodeIntegers(new Int16Array(bytes.buffer, bytes.byteOffset, out.length), out);
    case "I8":
      return decodeIntegers(new Int8Array(bytes.buffer, bytes.byteOffset, out.length), out);
    case "U8":
    case "BOOL":
      return decodeIntegers(bytes, out);
  }
}

/** Index of the first NaN or infinity, or -1. */
export function firstNonFinite(values: Float32Array): number {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < bits.length; i++) {
    if (((bits[i] as number) & 0x7f800000) === 0x7f800000) return i;
  }
  return -1;
}

function decodeBfloat16(words: Uint16Array, out: Float32Array): number {
  const bits = new Uint32Array(out.buffer, out.byteOffset, out.length);
  let bad = 0;
  for (let i = 0; i < words.length; i++) {
    const word = words[i] as number;
    bits[i] = word << 16;
    // Reaches bit 15 exactly when all eight exponent bits are set.
    bad |= (word & 0x7f80) + 0x80;
  }
  return bad & 0x8000 ? firstNonFinite(out) : -1;
}

function decodeByTable(words: Uint16Array | Uint8Array, table: Float32Array, out: Float32Array): number {
  let bad = 0;
  for (let i = 0; i < words.length; i++) {
    const value = table[words[i] as number] as number;
    out[i] = value;
    // Only NaN and infinities give something else than 0.
    bad += value * 0;
  }
  return bad === 0 ? -1 : firstNonFinite(out);
}

function decodeIntegers(words: ArrayLike<number>, out: Float32Array): number {
  for (let i = 0; i < out.length; i++) {
    const value = words[i] as number;
    out[i] = value;
    if (out[i] !== value) return i;
  }
  return -1;
}

function decodeBigInts(words: BigInt64Array | BigUint64Array, out: Float32Array): number {
  for (let i = 0; i < words.length; i++) {
    const word = words[i] as bigint;
    out[i] = Number(word);
    if (BigInt(out[i] as number) !== word) return i;
  }
  return -1;
}

/**
 * Narrows values that `roundToDtype` has rounded, so that nothing is lost here.
 * @param bytes receives them, little-endian, aligned to the size of `dtype`
 * @throws COPPICE_FORMAT_DTYPE for integer dtypes
 */
export function encodeValues(dtype: DType, values: Float32Array, bytes: Uint8Array): void {
  switch (dtype) {
    case "F32":
      new Float32Array(bytes.buffer, bytes.byteOffset, values.length).set(values);
      return;
    case "F64":
      new Float64Array(bytes.buffer, bytes.byteOffset, values.length).set(values);
      return;
    case "BF16": {
      const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
      const words = new Uint16Array(bytes.buffer, bytes.byteOffset, values.length);
      for (let i = 0; i < words.length; i++) words[i] = (bits[i] as number) >>> 16;
      return;
    }
    case "F16":
      encodeSmallFloat(values, new Uint16Array(bytes.buffer, bytes.byteOffset, values.length), 5, 10);
      return;
    case "F8_E4M3":
      encodeSmallFloat(values, bytes, 4, 3);
      return;
    default:
      throw new CoppiceError("COPPICE_FORMAT_DTYPE", `computed weights cannot be stored as ${dtype}`, {
        details: { dtype },
      });
  }
}

/**
 * `roundToDtype` and `encodeValues` in one: the stored form of computed values, which may be overwritten.
 * @returns the position of the first value that is not finite, or -1
 */
export function encodeRounded(dtype: DType, values: Float32Array, bytes: Uint8Array): number {
  if (dtype === "BF16" && roundIntoBfloat16(values, bytes)) return -1;
  const bad = firstNonFinite(values);
  if (bad >= 0) return bad;
  roundToDtype(values, dtype);
  encodeValues(dtype, values, bytes);
  return -1;
}

/** One pass instead of three, for values below the range where rounding needs care; false when some are not. */
function roundIntoBfloat16(values: Float32Array, bytes: Uint8Array): boolean {
  const bits = new Int32Array(values.buffer, values.byteOffset, values.length);
  const words = new Int16Array(bytes.buffer, bytes.byteOffset, values.length);
  let large = 0;
  for (let i = 0; i < words.length; i++) {
    const word = bits[i] as number;
    // Reaches the sign bit from 0x7f7f8000 on: values that round to infinity, infinity and NaN.
    large |= ((word & 0x7fffffff) + 0x00808000) | 0;
    words[i] = ((word + 0x7fff + ((word >>> 16) & 1)) | 0) >> 16;
  }
  return large >= 0;
}

function encodeSmallFloat(
  values: Float32Array,
  words: Uint16Array | Uint8Array,
  exponentBits: number,
  mantissaBits: number,
): void {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const bias = 2 ** (exponentBits - 1) - 1;
  const smallestNormal = 2 ** (1 - bias);
  const subnormalStep = 2 ** (1 - bias - mantissaBits);
  const signShift = 31 - exponentBits - mantissaBits;
  for (let i = 0; i < words.length; i++) {
    const word = bits[i] as number;
    const magnitude = Math.abs(values[i] as number);
    const code =
      magnitude < smallestNormal
        ? magnitude / subnormalStep
        : ((word & 0x7fffffff) >>> (23 - mantissaBits)) - ((127 - bias) << mantissaBits);
    words[i] = ((word >>> 31) << (31 - signShift)) | code;
  }
}

let half: Float32Array | undefined;

/** Value of every F16 bit pattern (IEEE 754 binary16). A look-up is faster than the arithmetic. */
function halfTable(): Float32Array {
  half ??= smallFloatTable(5, 10, (exponent) => exponent === 31);
  return half;
}

let float8: Float32Array | undefined;

/** Value of every F8_E4M3 bit pattern ("FN": no infinities, only S.1111.111 is NaN; OCP 8-bit format). */
function float8Table(): Float32Array {
  float8 ??= smallFloatTable(4, 3, (exponent, mantissa) => exponent === 15 && mantissa === 7);
  return float8;
}

let wideFloat8: Float32Array | undefined;

/** Value of every F8_E5M2 bit pattern (a float16 without its last eight bits; OCP 8-bit format). */
function wideFloat8Table(): Float32Array {
  wideFloat8 ??= smallFloatTable(5, 2, (exponent) => exponent === 31);
  return wideFloat8;
}

let powers: Float32Array | undefined;

/** Value of every F8_E8M0 bit pattern: 2^(code - 127), 255 is NaN (OCP Microscaling Formats 1.0, section 5.4.1). */
function powerTable(): Float32Array {
  powers ??= Float32Array.from({ length: 256 }, (_, code) => (code === 255 ? Number.NaN : 2 ** (code - 127)));
  return powers;
}

function smallFloatTable(
  exponentBits: number,
  mantissaBits: number,
  isSpecial: (exponent: number, mantissa: number) => boolean,
): Float32Array {
  const bias = 2 ** (exponentBits - 1) - 1;
  const table = new Float32Array(2 ** (1 + exponentBits + mantissaBits));
  for (let code = 0; code < table.length / 2; code++) {
    const exponent = code >>> mantissaBits;
    const mantissa = code & (2 ** mantissaBits - 1);
    const fraction = mantissa / 2 ** mantissaBits;
    const value = isSpecial(exponent, mantissa)
      ? Number.NaN
      : exponent === 0
        ? fraction * 2 ** (1 - bias)
        : (1 + fraction) * 2 ** (exponent - bias);
    table[code] = value;
    table[code + table.length / 2] = -value;
  }
  return table;
}
