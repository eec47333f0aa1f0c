export { type FrequencyOptions, frequency } from "./frequency.js";
export { type RandomOptions, random } from "./random.js";
export { type ReapOptions, reap } from "./reap.js";
export { type SoftActivationOptions, softActivation } from "./soft-activation.js";
export { type WeightMagnitudeOptions, weightMagnitude } from "./weight-magnitude.js";
