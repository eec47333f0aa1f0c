import type { QuantizedMatrix, TensorRef } from "@coppice/core";
import { type EncodedValues, encodeBlocks } from "./encode-values.js";
import type { GgufTensorType } from "./tensor-types.js";

/** Whether a matrix is quantized in a way that blocks of this type hold as it is: symmetric groups of whole blocks. */
export function holdsCodes(type: GgufTensorType, { scales }: TensorRef): type is "Q8_0" | "Q4_0" {
  if (scales?.format !== "packed" || scales.zeroPoints || scales.columns % 32 !== 0) return false;
  return (type === "Q8_0" && scales.bits === 8) || (type === "Q4_0" && scales.bits === 4);
}

/**
 * Such a matrix with its own codes, so that what a better quantizer than ggml's found is kept. Scales are rounded to F16.
 */
export function encodeCodes(type: "Q8_0" | "Q4_0", matrix: QuantizedMatrix): EncodedValues {
  const { bits, groupSize, codes, scales, rows, columns } = matrix;
  const copy = type === "Q8_0" ? copyBytes : copyHalfBytes;
  return encodeBlocks(type, rows * columns, (from, bytes, to) => {
    copy(codes, (from * bits) / 8, bytes, to);
    return scales[Math.floor(from / groupSize)] as number;
  });
}

type CopyBlock = (codes: Uint8Array, from: number, bytes: Uint8Array, to: number) => void;

/** From codes whose zero is 128 to those of two's complement. */
const copyBytes: CopyBlock = (codes, from, bytes, to) => {
  for (let i = 0; i < 32; i++) bytes[to + i] = (codes[from + i] as number) ^ 0x80;
};

/** From pairs of neighbours to pairs of code j and j + 16. */
const copyHalfBytes: CopyBlock = (codes, from, bytes, to) => {
  const code = (i: number) => ((codes[from + (i >> 1)] as number) >> (4 * (i % 2))) & 15;
  for (let j = 0; j < 16; j++) bytes[to + j] = code(j) | (code(j + 16) << 4);
};
