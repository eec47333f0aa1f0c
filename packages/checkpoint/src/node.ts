export { folderTarget } from "./node/folder-target.js";
export { openFolder } from "./node/open-folder.js";
export { resolveInside } from "./node/resolve-inside.js";
export { type SyntheticOptions, writeSyntheticCheckpoint } from "./node/synthetic.js";
