export { openFolder } from "./node/open-folder.js";
export { resolveInside } from "./node/resolve-inside.js";
