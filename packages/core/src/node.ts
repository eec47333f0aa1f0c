export { freeBytes, syncFolder } from "./node/file-systems.js";
export {
  type ReadFileOptions,
  readFileBounded,
  readHandleBounded,
  readTextBounded,
} from "./node/read-file-bounded.js";
export { readError, writeError } from "./node/system-errors.js";
export { isUnfinishedFile, type WriteFileOptions, writeFileAtomic } from "./node/write-file-atomic.js";
