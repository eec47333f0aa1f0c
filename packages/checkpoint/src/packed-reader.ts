import {
  dequantizeMatrix,
  type PackedScales,
  packBits,
  type QuantizedMatrix,
  type TensorRef,
  type WeightReader,
} from "@coppice/core";
import type { SourceCache } from "./source-cache.js";

/** What packed matrices are read with. */
interface PackedSource extends Pick<WeightReader, "read"> {
  readonly sources: SourceCache;
}

/** Bytes of codes that are decoded at a time. */
const bandBytes = 1 << 20;

/**
 * Values of a packed matrix, some rows at a time, so that its codes are not held as a whole.
 * @param out [N, K]
 */
export async function readPackedValues(
  source: PackedSource,
  ref: TensorRef,
  packed: PackedScales,
  out: Float32Array,
  signal: AbortSignal | undefined,
): Promise<void> {
  const [N, K] = ref.shape as [number, number];
  const { bits, columns: groupSize } = packed;
  const { scales, zeros } = await readScales(source, packed, signal);
  const groups = K / groupSize;
  const rowBytes = (K * bits) / 8;
  const high = Math.max(1, Math.floor(bandBytes / rowBytes));
  for (let first = 0; first < N; first += high) {
    const rows = Math.min(high, N - first);
    const codes = await readBytes(source, ref, first * rowBytes, rows * rowBytes, signal);
    const band = (values: Float32Array | Uint8Array) =>
      values.subarray(first * groups, (first + rows) * groups);
    const matrix: QuantizedMatrix = {
      rows,
      columns: K,
      bits,
      groupSize,
      codes,
      scales: band(scales) as Float32Array,
      ...(zeros && { zeroPoints: packBits(band(zeros) as Uint8Array, rows, bits) }),
    };
    dequantizeMatrix(matrix, out.subarray(first * K, (first + rows) * K));
  }
}

/** A packed matrix as it is; its zero points in the order of rows. */
export async function readQuantizedMatrix(
  source: PackedSource,
  ref: TensorRef,
  packed: PackedScales,
  signal: AbortSignal | undefined,
): Promise<QuantizedMatrix> {
  const [rows, columns] = ref.shape as [number, number];
  const { bits, columns: groupSize } = packed;
  const { scales, zeros } = await readScales(source, packed, signal);
  const codes = await readBytes(source, ref, 0, ref.end - ref.begin, signal);
  return {
    rows,
    columns,
    bits,
    groupSize,
    codes,
    scales,
    ...(zeros && { zeroPoints: packBits(zeros, rows, bits) }),
  };
}

/** Scales [N, groups], and zero points likewise, a byte each. */
async function readScales(
  source: PackedSource,
  { scales, zeroPoints, stored, bits }: PackedScales,
  signal: AbortSignal | undefined,
): Promise<{ scales: Float32Array; zeros: Uint8Array | undefined }> {
  const factors = await source.read(scales, signal ? { signal } : {});
  if (!zeroPoints) return { scales: factors, zeros: undefined };
  const bytes = await readBytes(source, zeroPoints, 0, zeroPoints.end - zeroPoints.begin, signal);
  return { scales: factors, zeros: unpackZeroPoints(bytes, stored[0], bits) };
}

/**
 * Zero points as compressed-tensors packs them: word [i, j] holds those of rows i * 32 / bits and following in group j,
 * the first in its lowest bits.
 * @param bytes of little-endian words [ceil(rows * bits / 32), groups]
 * @returns [rows, groups]
 */
export function unpackZeroPoints(bytes: Uint8Array, rows: number, bits: number): Uint8Array {
  const perWord = 32 / bits;
  const perByte = 8 / bits;
  const groups = bytes.length / 4 / Math.ceil(rows / perWord);
  const zeros = new Uint8Array(rows * groups);
  for (let row = 0; row < rows; row++) {
    const inWord = row % perWord;
    const first = ((row - inWord) / perWord) * groups * 4 + Math.floor(inWord / perByte);
    const shift = (inWord % perByte) * bits;
    for (let group = 0; group < groups; group++) {
      zeros[row * groups + group] = ((bytes[first + 4 * group] as number) >> shift) & (2 ** bits - 1);
    }
  }
  return zeros;
}

/** The inverse of `unpackZeroPoints`. @param zeros [rows, groups] */
export function packZeroPoints(zeros: Uint8Array, rows: number, bits: number): Uint8Array {
  const perWord = 32 / bits;
  const perByte = 8 / bits;
  const groups = zeros.length / rows;
  const bytes = new Uint8Array(Math.ceil(rows / perWord) * groups * 4);
  for (let row = 0; row < rows; row++) {
    const inWord = row % perWord;
    const first = ((row - inWord) / perWord) * groups * 4 + Math.floor(inWord / perByte);
    const shift = (inWord % perByte) * bits;
    for (let group = 0; group < groups; group++) {
      const at = first + 4 * group;
      bytes[at] = (bytes[at] as number) | ((zeros[row * groups + group] as number) << shift);
    }
  }
  return bytes;
}

async function readBytes(
  { sources }: PackedSource,
  { file, begin }: TensorRef,
  offset: number,
  length: number,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await sources.use(file, (source) => source.read(begin + offset, bytes, signal ? { signal } : {}));
  return bytes;
}
