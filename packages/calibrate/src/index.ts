export { type CollectOptions, collectStatistics } from "./collect.js";
export { type CollectedStatistics, mergeStatistics, type StatisticsSource } from "./collected-statistics.js";
export { decodeStatistics, encodeStatistics, statisticsVersion } from "./statistics-file.js";
