export { type CollectOptions, collectParts, collectStatistics } from "./collect.js";
export { clearLayerStream, collectByLayers, type LayerStreamOptions } from "./collect-by-layers.js";
export {
  type CollectedStatistics,
  type DataKind,
  dataKinds,
  mergeStatistics,
  type SourceOptions,
  type StatisticsSource,
  scaleStatistics,
} from "./collected-statistics.js";
export type { CollectionOptions } from "./collection.js";
export { partRanges } from "./data-parts.js";
export { type DroppedPoint, type DroppedProbability, droppedProbability } from "./dropped-probability.js";
export { GramSum } from "./gram-sum.js";
export { type CollectedPart, PartSum } from "./part-sum.js";
export { rankCorrelation } from "./rank-correlation.js";
export { hashSequences } from "./sequence-hash.js";
export { decodeStatistics, encodeStatistics, statisticsVersion } from "./statistics-file.js";
export { type StatisticsContent, statisticsBytes, statisticsLimit } from "./statistics-size.js";
export type { StreamEstimate } from "./stream-pace.js";
export type { SampleOptions } from "./token-sample.js";
export type { WorkStore } from "./work-store.js";
