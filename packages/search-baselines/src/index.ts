export { type ExhaustiveOptions, exhaustive } from "./exhaustive.js";
export { type GreedyOptions, greedy } from "./greedy.js";
export { type OneShotOptions, oneShot } from "./one-shot.js";
export { type RandomOptions, random } from "./random.js";
export type { SubsetOptions } from "./subsets.js";
