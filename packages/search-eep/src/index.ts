export { type EepOptions, eep } from "./eep.js";
export type { DefaultRates, PublishedRates } from "./presets.js";
export { projectToStock } from "./project.js";
