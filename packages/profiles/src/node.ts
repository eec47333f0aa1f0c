export { readProfiles, writeProfiles } from "./node/profile-files.js";
export { readTrace, writeTrace } from "./node/trace-files.js";
export type { WriteOptions } from "./node/write-options.js";
