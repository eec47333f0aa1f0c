export { type CollectOptions, collectStatistics } from "./collect.js";
export { type CollectedStatistics, mergeStatistics, type StatisticsSource } from "./collected-statistics.js";
export { hashSequences } from "./sequence-hash.js";
export { decodeStatistics, encodeStatistics, statisticsVersion } from "./statistics-file.js";
