export { applyPlan, type OutputOptions, type OutputSummary, predictOutput } from "./apply.js";
export { type CompareOptions, compareTensors, type TensorComparison } from "./compare.js";
export { decodeValues, encodeValues } from "./decode.js";
export type { CountPaths, Detected } from "./families/detect.js";
export type {
  ExpertRows,
  ExpertTensors,
  MergeRule,
  SeparateTensor,
  StackedTensor,
  UnitPlaces,
} from "./families/expert-tensors.js";
export { families } from "./families/families.js";
export type * from "./families/family.js";
export { familyPaddingObstacle, type VerifyTolerance, verifyTolerance } from "./families/family-promises.js";
export {
  type ByteSource,
  type CheckpointFolder,
  checkFileName,
  type FolderEntry,
  memoryFolder,
  readSmallFile,
} from "./folder.js";
export { type Inspection, inspectModel } from "./inspect.js";
export type { AttentionInspection } from "./inspect-attention.js";
export { type JsonObject, parseJsonObject } from "./json-object.js";
export { defaultLimits, type FormatLimits } from "./limits.js";
export { type LoadedCheckpoint, type LoadOptions, loadModel } from "./load.js";
export { type OpenUrlOptions, openUrl } from "./open-url.js";
export {
  type AttentionKeeper,
  type AttentionNoteOptions,
  attentionNoteFiles,
} from "./output/attention-note.js";
export { checkComplete, companionFiles, textFile } from "./output/companion-files.js";
export type { ConfigChanges } from "./output/config-changes.js";
export { bytesContent, type Content } from "./output/content.js";
export type { ExpertSlot } from "./output/expert-slots.js";
export {
  type ExportShape,
  exportShape,
  type LayerShape,
  type OutputLayout,
} from "./output/export-shape.js";
export { type Provenance, readProvenance } from "./output/provenance.js";
export {
  type RewriteOptions,
  type RewriteSummary,
  type RewrittenTensor,
  rewriteCheckpoint,
  type WriteTensor,
} from "./output/rewrite.js";
export type { RouterEntry } from "./output/router-entries.js";
export {
  type ByteSink,
  type CheckpointTarget,
  type MemoryTarget,
  memoryTarget,
  type TargetTransaction,
} from "./output/target.js";
export { type OutputFile, outputFile, type WriteOptions, writeFiles } from "./output/write-files.js";
export { packZeroPoints } from "./packed-reader.js";
export { type PartialModel, partialModel } from "./partial-model.js";
export {
  parseSafetensors,
  type SafetensorsContent,
  serializeSafetensors,
  type TensorBytes,
} from "./safetensors-bytes.js";
export { readSafetensorsHeader, type SafetensorsHeader } from "./safetensors-header.js";
export type { SourceCache } from "./source-cache.js";
