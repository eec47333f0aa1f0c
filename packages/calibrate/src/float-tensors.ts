import type { TensorBytes } from "@coppice/checkpoint";

type FloatArrays = { F64: Float64Array<ArrayBuffer>; F32: Float32Array<ArrayBuffer> };

const arrays = { F64: Float64Array, F32: Float32Array } as const;

/** Files are little-endian; where the machine is too, values are their bytes. */
const littleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

/** Values as a tensor, which may share their memory. */
export function encodeFloats(
  dtype: keyof FloatArrays,
  values: Float64Array | Float32Array,
  shape: readonly number[],
): TensorBytes {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return { dtype, shape, bytes: littleEndian ? bytes : swapped(bytes, values.BYTES_PER_ELEMENT) };
}

/** Values of a tensor of this dtype, which share its memory where they can. */
export function decodeFloats<D extends keyof FloatArrays>(dtype: D, { bytes }: TensorBytes): FloatArrays[D] {
  const size = arrays[dtype].BYTES_PER_ELEMENT;
  const usable = littleEndian && bytes.byteOffset % size === 0 && bytes.buffer instanceof ArrayBuffer;
  const own = usable ? bytes : littleEndian ? bytes.slice() : swapped(bytes, size);
  return new arrays[dtype](own.buffer as ArrayBuffer, own.byteOffset, own.length / size) as FloatArrays[D];
}

/** A copy with the bytes of every element in reverse order. */
function swapped(bytes: Uint8Array, size: number): Uint8Array {
  const out = bytes.slice();
  for (let at = 0; at < out.length; at += size) out.subarray(at, at + size).reverse();
  return out;
}
