export * from "./combined-executor.js";
export * from "./evaluator.js";
export * from "./finalists.js";
export * from "./front.js";
export * from "./journal.js";
export * from "./run-search.js";
