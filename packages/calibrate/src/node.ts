export { readStatistics, type WriteStatisticsOptions, writeStatistics } from "./node/files.js";
