export { judgeAnswer, normalizeAnswer, type Verdict } from "./answer-text.js";
export { type ChatMessage, chatTemplateLimits } from "./chat-template.js";
export { type ContinueOptions, continuePrompts } from "./continue-prompts.js";
export { type EncodedPrompt, encodePrompt } from "./encode-prompt.js";
export {
  type EncodedSample,
  type EncodedSequence,
  type EncodedTask,
  type EncodeOptions,
  encodeTask,
} from "./encode-task.js";
export { calibrationSequences, defaultWindow } from "./encode-text.js";
export * from "./evaluate-task.js";
export * from "./evaluator.js";
export { f1Score } from "./f1.js";
export { type FactsTaskOptions, factsTask } from "./facts-task.js";
export * from "./generate.js";
export * from "./generate-text.js";
export * from "./intervals.js";
export { keywordScore } from "./keyword-score.js";
export { divergence } from "./kl.js";
export type { TextAttention } from "./limited-runner.js";
export { loadTokenizer, readTokenizer, type TokenizerFolder } from "./load-tokenizer.js";
export {
  checkLengths,
  defaultDepths,
  type LongContextOptions,
  type LongContextTask,
  longContextLimits,
  type Place,
  type PlaceScore,
  scoresByPlace,
} from "./long-context-task.js";
export * from "./metrics.js";
export * from "./micro-batch.js";
export { noTokenizer } from "./no-tokenizer.js";
export {
  checkObjective,
  defaultObjective,
  leastScore,
  logLikelihoodFloor,
  type Objective,
  objectives,
} from "./objective.js";
export * from "./owning-executor.js";
export * from "./position-scores.js";
export * from "./remote-executor.js";
export * from "./remote-pool.js";
export { retrievalTask } from "./retrieval-task.js";
export { Sampler, type SamplingOptions } from "./sampling.js";
export * from "./split-task.js";
export * from "./task.js";
export * from "./tokenizer.js";
export { type ParsedOutcome, parseOutcome, type WorkOutcome } from "./work-outcome.js";
export { WorkPlaces } from "./work-places.js";
export { type Measure, type SampleSet, sampleSet, type WorkRequest, workVersion } from "./work-request.js";
export {
  createWorkServer,
  type MeasuringPool,
  type WorkServer,
  type WorkServerOptions,
} from "./work-server.js";
export {
  type DraftGroup,
  gatherSamples,
  type WriteOptions,
  type WriteSamplesOptions,
  type WrittenSamples,
  writeGroup,
  writeSamples,
} from "./write-samples.js";
