export { readStatistics, type WriteStatisticsOptions, writeStatistics } from "./node/files.js";
export { openWorkFolder } from "./node/work-folder.js";
