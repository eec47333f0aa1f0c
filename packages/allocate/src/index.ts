export {
  type AllocateOptions,
  type Allocation,
  allocate,
  type LayerChoices,
  type LayerOption,
} from "./allocate.js";
export { type AllocateBitsOptions, allocateBits, type BitAllocation } from "./allocate-bits.js";
export {
  type AllocateUnitsOptions,
  allocateUnits,
  type CountRule,
  type UnitAllocation,
  type UnitGroup,
  type UnitOption,
} from "./allocate-units.js";
export { expertPlan, topKPlan } from "./allocation-plan.js";
export { type ExpertChoicesOptions, expertBytes, expertChoices } from "./expert-choices.js";
export {
  type FitSkippingOptions,
  type FittedSkipping,
  fitSkipping,
  type LayerSkipping,
  type SkippingPreset,
  skippingPresets,
} from "./fit-skipping.js";
export { allocateMcMoe, type McMoeOptions } from "./mc-moe.js";
export { measureSensitivity, type SensitivityRequest } from "./measure-sensitivity.js";
export { type MeasureTopKOptions, measureTopK } from "./measure-top-k.js";
export { parseSensitivity } from "./parse-sensitivity.js";
export type { SampleRequest } from "./sampled-layers.js";
export { sampledTopK, topKNeeds } from "./sampled-top-k.js";
export type {
  DroppedLoss,
  ExpertLoss,
  MatrixLoss,
  Sensitivity,
  WidthLoss,
  WidthMatrix,
} from "./sensitivity.js";
export { type TopKCosts, topKChoices } from "./top-k-choices.js";
