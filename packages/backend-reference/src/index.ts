export { type ReferenceOptions, reference } from "./plugin.js";
