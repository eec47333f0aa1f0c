export { type BackendConformanceOptions, backendConformance } from "./backend-conformance.js";
export type { BackendSource } from "./backend-subject.js";
export type { ConformanceCase } from "./conformance-case.js";
export type { Fixture, FixtureSource, Golden, GoldenRouter } from "./fixture.js";
export { intoMemory, type MemoryModel, memoryModel, modelTensors } from "./memory-model.js";
export { randomModel } from "./random-model.js";
export type { RandomLatent, RandomModelShape, RandomRouter } from "./random-shape.js";
export { sampleAttention } from "./sample-attention.js";
export { type ModelFeature, sampleShapes } from "./sample-shapes.js";
export {
  type SearchConformanceSettings,
  searchConformance,
} from "./search-conformance.js";
export {
  type Landscape,
  type SeparableLandscape,
  separableLandscape,
  type ToyExecutor,
  type ToyExecutorOptions,
  type ToyModelShape,
  toyExecutor,
  toyModel,
} from "./search-toys.js";
export { sliceModel } from "./slice-model.js";
export {
  type SlowChoice,
  type SlowExpert,
  type SlowHeads,
  type SlowLayer,
  type SlowResult,
  type SlowSight,
  slowForward,
} from "./slow-model.js";
export { slowSight } from "./slow-spans.js";
