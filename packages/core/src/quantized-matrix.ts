import { CoppiceError } from "./errors.js";
import { type DType, dtypeBytes } from "./tensor.js";

/** Bits of a code: those that ONNX Runtime's `MatMulNBits` executes on all targets. */
export const quantizedBits = [2, 4, 8] as const;
export type QuantizedBits = (typeof quantizedBits)[number];

/** Columns that share a scale: those that `MatMulNBits` executes. */
export const quantizedGroups = [16, 32, 64, 128, 256] as const;

/** How a matrix is to be quantized. */
export interface QuantizedFormat {
  readonly bits: QuantizedBits;
  /** Neighbouring columns (input features) of a row that share a scale. */
  readonly groupSize: number;
  /** True: the zero point of all groups is 2^(bits - 1), so that none is stored. */
  readonly symmetric: boolean;
}

/** Dtypes in which scales are stored. */
export type ScaleDType = "F32" | "F16" | "BF16";

/**
 * A matrix [N, K] as integer codes with a scale per group of g neighbours of a row: `w = (q - z) * s`, in float32. The
 * bytes are those that `MatMulNBits` and `QMoE` of ONNX Runtime read and that the layout `pack-quantized` of
 * compressed-tensors stores, so that nothing is packed anew on the way.
 */
export interface QuantizedMatrix {
  /** N, output features. */
  readonly rows: number;
  /** K, input features; a multiple of `groupSize`. */
  readonly columns: number;
  readonly bits: QuantizedBits;
  readonly groupSize: number;
  /** [N, K / g, g * bits / 8], codes from 0 to 2^bits - 1, the first one of a byte in its lowest bits. */
  readonly codes: Uint8Array;
  /** [N, K / g] */
  readonly scales: Float32Array;
  /** [N, ceil(K / g * bits / 8)], packed as the codes are, every row from a new byte; absent: all are 2^(bits - 1). */
  readonly zeroPoints?: Uint8Array;
}

/**
 * Refuses formats that are not executed, and groups that do not divide the rows.
 * @param columns K of the matrix
 * @param name of the matrix, for messages
 * @throws COPPICE_USAGE
 */
export function checkQuantizedFormat(
  { bits, groupSize }: QuantizedFormat,
  columns: number,
  name: string,
): void {
  if (!(quantizedBits as readonly number[]).includes(bits)) {
    throw unusable(`${name} cannot have ${bits} bits per weight, expected ${quantizedBits.join(", ")}`, {
      bits,
    });
  }
  if (!(quantizedGroups as readonly number[]).includes(groupSize)) {
    const known = quantizedGroups.join(", ");
    throw unusable(`${name} cannot have groups of ${groupSize}, expected ${known}`, { groupSize });
  }
  if (columns % groupSize === 0) return;
  const fitting = quantizedGroups.filter((size) => columns % size === 0);
  throw unusable(
    `groups of ${groupSize} do not divide the ${columns} columns of ${name}`,
    { groupSize, columns, fitting },
    fitting.length > 0 ? `groups of ${fitting.join(", ")} do` : "leave this matrix as it is",
  );
}

function unusable(message: string, details: Readonly<Record<string, unknown>>, hint?: string): CoppiceError {
  return new CoppiceError("COPPICE_USAGE", message, { details, ...(hint !== undefined && { hint }) });
}

/** Bytes of a quantized matrix [rows, columns]: codes, scales and zero points. */
export function quantizedBytes(
  { bits, groupSize, symmetric }: QuantizedFormat,
  rows: number,
  columns: number,
  scales: DType = "F16",
): number {
  const groups = columns / groupSize;
  const zeroPoints = symmetric ? 0 : rows * Math.ceil((groups * bits) / 8);
  return (rows * columns * bits) / 8 + rows * groups * dtypeBytes[scales] + zeroPoints;
}

/**
 * Packs integers of one byte each, low bits first, every row from a new byte.
 * @param values [rows, count], each below 2^bits
 * @returns [rows, ceil(count * bits / 8)]
 */
export function packBits(values: Uint8Array, rows: number, bits: QuantizedBits): Uint8Array {
  const count = values.length / rows;
  const width = Math.ceil((count * bits) / 8);
  const perByte = 8 / bits;
  const packed = new Uint8Array(rows * width);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < count; i++) {
      const at = row * width + Math.floor(i / perByte);
      packed[at] = (packed[at] as number) | ((values[row * count + i] as number) << (bits * (i % perByte)));
    }
  }
  return packed;
}

/** The inverse of `packBits`. @param count integers of a row @returns [rows, count] */
export function unpackBits(packed: Uint8Array, rows: number, count: number, bits: QuantizedBits): Uint8Array {
  const width = Math.ceil((count * bits) / 8);
  const perByte = 8 / bits;
  const mask = 2 ** bits - 1;
  const values = new Uint8Array(rows * count);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < count; i++) {
      const byte = packed[row * width + Math.floor(i / perByte)] as number;
      values[row * count + i] = (byte >> (bits * (i % perByte))) & mask;
    }
  }
  return values;
}

/**
 * The float32 values of a quantized matrix, each product rounded once.
 * @param into [rows, columns]; default a new array
 */
export function dequantizeMatrix(
  matrix: QuantizedMatrix,
  into: Float32Array = new Float32Array(matrix.rows * matrix.columns),
): Float32Array {
  const { rows, columns, bits, groupSize, codes, scales, zeroPoints } = matrix;
  const groups = columns / groupSize;
  const zeros = zeroPoints && unpackBits(zeroPoints, rows, groups, bits);
  const middle = 2 ** (bits - 1);
  const mask = 2 ** bits - 1;
  const groupBytes = (groupSize * bits) / 8;
  for (let group = 0, at = 0; group < rows * groups; group++) {
    const scale = scales[group] as number;
    const zero = zeros ? (zeros[group] as number) : middle;
    for (let byte = group * groupBytes; byte < (group + 1) * groupBytes; byte++) {
      let rest = codes[byte] as number;
      for (let shift = 0; shift < 8; shift += bits) {
        into[at++] = ((rest & mask) - zero) * scale;
        rest >>= bits;
      }
    }
  }
  return into;
}
