export type { WeightType } from "./export-config.js";
export { type ExportSummary, exportOnnx, predictExport } from "./export-onnx.js";
export type { GraphOptions } from "./graph-files.js";
export { type ExportTarget, exportTargets } from "./targets.js";
