export type { FitText } from "./fit-stream.js";
export type { FitTarget } from "./normal-equations.js";
export { type MatrixProducts, type ProductRequest, plainProducts } from "./products.js";
export {
  defaultGrids,
  type FitChoice,
  type Fold,
  type LayerReconstruction,
  type Reconstruction,
  type ReconstructOptions,
  reconstruct,
} from "./reconstruct.js";
export { solvingCost } from "./solving-cost.js";
