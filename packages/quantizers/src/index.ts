export { type AwqOptions, awq } from "./awq.js";
export type { CalibrationData } from "./calibrated-pass.js";
export {
  type FormatOf,
  type FormattedMatrix,
  formatMatrices,
  type UniformFormat,
  uniformFormat,
} from "./format-rules.js";
export { type GptqOptions, gptq } from "./gptq.js";
export { type HqqOptions, hqq } from "./hqq.js";
export type { QuantizedMatrixReport } from "./matrix-work.js";
export { type MatrixRole, type ModelMatrix, modelMatrices } from "./model-matrices.js";
export { packedSize } from "./pack-tensors.js";
export {
  type QuantizeCheckpointOptions,
  type QuantizeSummary,
  quantizeCheckpoint,
} from "./quantize-checkpoint.js";
export { type RtnOptions, rtn } from "./rtn.js";
