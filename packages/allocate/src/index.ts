export {
  type AllocateOptions,
  type Allocation,
  allocate,
  type LayerChoices,
  type LayerOption,
} from "./allocate.js";
export { expertPlan, topKPlan } from "./allocation-plan.js";
export { type ExpertChoicesOptions, expertBytes, expertChoices } from "./expert-choices.js";
export { type MeasureTopKOptions, measureTopK } from "./measure-top-k.js";
export { type TopKCosts, topKChoices } from "./top-k-choices.js";
