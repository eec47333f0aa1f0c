export type { Linkage } from "./clusters.js";
export { type LogitClustersOptions, logitClusters } from "./logit-clusters.js";
export { type MSmoeOptions, mSmoe } from "./m-smoe.js";
