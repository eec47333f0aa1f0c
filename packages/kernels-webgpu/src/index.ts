export * from "./answers.js";
export {
  type AttentionCall,
  type AttentionShape,
  type AttentionSight,
  type AttentionTables,
  attendPrefill,
  attendSplit,
  attentionReceived,
  attentionTables,
  type SequenceSpan,
  splitBytes,
} from "./attention.js";
export { type KeepRowsCall, keepRows, maskTable } from "./attention-cache.js";
export { type QueryTile, queryTileFor } from "./attention-prefill-code.js";
export * from "./check/check-attention.js";
export * from "./check/check-draw.js";
export {
  checkEmbedding,
  checkExperts,
  checkMatmul,
  type ExpertsShape,
  type MatmulShape,
} from "./check/check-matmul.js";
export * from "./check/check-merge.js";
export * from "./check/check-routing.js";
export * from "./check/check-rows.js";
export { type Implementation, type KernelCheck, selfCheck } from "./check/kernel-check.js";
export { Commands } from "./commands.js";
export * from "./draw-tokens.js";
export * from "./elementwise.js";
export { embed } from "./embedding.js";
export * from "./expert-matmul.js";
export * from "./gpu.js";
export * from "./gpu-buffer.js";
export {
  createMatrix,
  disposeMatrix,
  formatKey,
  type GpuMatrix,
  type MatrixPart,
  matrixBytes,
  rowBytes,
  type WeightFormat,
  writeQuantized,
  writeRows,
} from "./gpu-matrix.js";
export type { Kernel, KernelBinding, KernelSource, ParamType } from "./kernel.js";
export * from "./matmul.js";
export * from "./merge-experts.js";
export * from "./norm.js";
export * from "./rotary.js";
export * from "./route-choices.js";
export { leastColumns } from "./rows-code.js";
export * from "./sort-choices.js";
