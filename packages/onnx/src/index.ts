export * from "./attention-graph.js";
export * from "./attention-shape.js";
export * from "./expert-graph.js";
export * from "./graph-builder.js";
export * from "./head-graph.js";
export * from "./mlp.js";
export * from "./model-file.js";
export * from "./moe-graph.js";
export { type NormShape, normShape } from "./norms.js";
