export {
  type AcceptedLayers,
  type AcceptOptions,
  acceptLayers,
  type CheckedLayer,
} from "./accept-layers.js";
export type { RepairStep } from "./fit-router.js";
export type { PartErrors } from "./fit-state.js";
export {
  type LayerRepair,
  type RepairedRouter,
  type RepairOptions,
  repairNeeds,
  repairRouter,
} from "./repair-router.js";
