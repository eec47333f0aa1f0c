/** Types of tensors that are written. */
export type GgufTensorType = "F32" | "F16" | "Q8_0" | "Q4_0";

interface TensorLayout {
  /** Number of the type in a GGUF file (`ggml_type` of ggml.h). */
  readonly code: number;
  /** Values of a block, which lie side by side in a row, and the bytes that it takes. */
  readonly blockValues: number;
  readonly blockBytes: number;
}

/** Blocks of Q8_0 and Q4_0 hold a scale as F16 and then 32 codes, of one byte or of four bits (`ggml-common.h`). */
export const tensorTypes: Readonly<Record<GgufTensorType, TensorLayout>> = {
  F32: { code: 0, blockValues: 1, blockBytes: 4 },
  F16: { code: 1, blockValues: 1, blockBytes: 2 },
  Q4_0: { code: 2, blockValues: 32, blockBytes: 18 },
  Q8_0: { code: 8, blockValues: 32, blockBytes: 34 },
};

/** Bytes that `count` values take, which are whole blocks. */
export function tensorBytes(type: GgufTensorType, count: number): number {
  const { blockValues, blockBytes } = tensorTypes[type];
  return (count / blockValues) * blockBytes;
}
