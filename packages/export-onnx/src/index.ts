export { type WeightType, weightTypes } from "./export-config.js";
export { type ExportOptions, type ExportSummary, exportOnnx, predictExport } from "./export-onnx.js";
export { type ExportTarget, exportTargets } from "./targets.js";
