export { type CmaEsOptions, cmaEs } from "./cma-es.js";
export {
  CovarianceAdaptation,
  type CovarianceAdaptationOptions,
  defaultPopulation,
} from "./covariance-adaptation.js";
