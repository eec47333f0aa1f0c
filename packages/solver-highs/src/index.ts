export { type HighsOptions, highs } from "./highs.js";
