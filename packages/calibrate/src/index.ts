export { type CollectOptions, collectStatistics } from "./collect.js";
export {
  type CollectedStatistics,
  type DataKind,
  dataKinds,
  mergeStatistics,
  type SourceOptions,
  type StatisticsSource,
  scaleStatistics,
} from "./collected-statistics.js";
export { type DroppedPoint, type DroppedProbability, droppedProbability } from "./dropped-probability.js";
export { rankCorrelation } from "./rank-correlation.js";
export { hashSequences } from "./sequence-hash.js";
export { decodeStatistics, encodeStatistics, statisticsVersion } from "./statistics-file.js";
