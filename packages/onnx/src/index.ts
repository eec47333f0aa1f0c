export * from "./attention-graph.js";
export * from "./graph-builder.js";
export * from "./head-graph.js";
export * from "./model-file.js";
export * from "./moe-graph.js";
