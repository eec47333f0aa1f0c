export {
  type ExportedFolder,
  type GraphSource,
  type UrlFolderOptions,
  urlFolder,
} from "./exported-folder.js";
export * from "./exported-model.js";
export type { OnnxRuntime } from "./onnx-runtime.js";
export type { LayerExperts } from "./sequence.js";
export { widenedFolder } from "./widened-folder.js";
