import { encodeValues, packZeroPoints, type RewrittenTensor } from "@coppice/checkpoint";
import {
  dtypeBytes,
  elementCount,
  type QuantizedFormat,
  type QuantizedMatrix,
  type ScaleDType,
  unpackBits,
} from "@coppice/core";

/** The tensors of a quantized matrix as compressed-tensors stores them (`pack-quantized`). */
export function packedTensors(
  module: string,
  [rows, columns]: readonly [number, number],
  { bits, groupSize, symmetric }: QuantizedFormat,
  scales: ScaleDType,
): RewrittenTensor[] {
  const groups = columns / groupSize;
  return [
    { name: `${module}.weight_packed`, dtype: "I32", shape: [rows, (columns * bits) / 32] },
    { name: `${module}.weight_scale`, dtype: scales, shape: [rows, groups] },
    { name: `${module}.weight_shape`, dtype: "I64", shape: [2] },
    ...(symmetric
      ? []
      : [
          {
            name: `${module}.weight_zero_point`,
            dtype: "I32" as const,
            shape: [Math.ceil((rows * bits) / 32), groups],
          },
        ]),
  ];
}

/** Bytes that a matrix [rows, columns] takes in this layout: codes, scales, zero points and its shape. */
export function packedSize(
  shape: readonly [rows: number, columns: number],
  format: QuantizedFormat,
  scales: ScaleDType = "F16",
): number {
  const tensors = packedTensors("", shape, format, scales);
  return tensors.reduce((sum, tensor) => sum + elementCount(tensor.shape) * dtypeBytes[tensor.dtype], 0);
}

/** The bytes of these tensors, in their order. */
export function packedBytes(matrix: QuantizedMatrix, dtype: ScaleDType): Uint8Array[] {
  const { rows, columns, bits, groupSize, codes, scales, zeroPoints } = matrix;
  const scaleBytes = new Uint8Array(scales.length * (dtype === "F32" ? 4 : 2));
  encodeValues(dtype, scales, scaleBytes);
  const shape = new Uint8Array(BigInt64Array.of(BigInt(rows), BigInt(columns)).buffer);
  const zeros = zeroPoints && unpackBits(zeroPoints, rows, columns / groupSize, bits);
  return [codes, scaleBytes, shape, ...(zeros ? [packZeroPoints(zeros, rows, bits)] : [])];
}
