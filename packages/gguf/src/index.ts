export type { GgufFileType } from "./model-metadata.js";
export { type GgufOptions, type GgufSummary, writeGguf } from "./write-gguf.js";
