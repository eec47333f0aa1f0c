export { decodeValues, encodeValues } from "./decode.js";
export { type Detected, families } from "./families/detect.js";
export type { ExpertLayout, FamilyDescription, MlpNames } from "./families/family.js";
export {
  type ByteSource,
  type CheckpointFolder,
  checkFileName,
  type FolderEntry,
  memoryFolder,
} from "./folder.js";
export type { JsonObject } from "./json-object.js";
export { defaultLimits, type FormatLimits } from "./limits.js";
export { type LoadedCheckpoint, type LoadOptions, loadModel } from "./load.js";
export { readSafetensorsHeader, type SafetensorsHeader } from "./safetensors-header.js";
