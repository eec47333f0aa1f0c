export {
  type CachePolicy,
  type CacheRun,
  cacheHits,
  cachePolicies,
  type PolicyOptions,
} from "./cache-policies.js";
export { type Drift, DriftMonitor, type DriftOptions } from "./drift-monitor.js";
export { type ExpertLists, expectedDrop, uniteProfiles } from "./expert-lists.js";
export { FullRouter, readRouters } from "./full-router.js";
export {
  bendTrace,
  type MemoryPlan,
  type MemoryPlanOptions,
  type MemoryRow,
  planMemory,
} from "./memory-plan.js";
export { defaultMargin, type NearProfile, type Pick, type PickOptions, pickProfile } from "./pick-profile.js";
export { decodeProfiles, encodeProfiles, profileLimits, profilesVersion } from "./profile-file.js";
export { type ProfileSize, profilePlan } from "./profile-plan.js";
export * from "./profile-store.js";
export { openPromptReader, type PromptReader } from "./prompt-reader.js";
export {
  noExpert,
  type RoutingTrace,
  sliceTrace,
  type TraceLayer,
  type TraceSequence,
  traceTokens,
} from "./routing-trace.js";
export * from "./simulate-cache.js";
export { type LogitSums, statisticVector, type TaskStatistic, taskStatistics } from "./task-statistic.js";
export { decodeTrace, encodeTrace, traceLimits, traceVersion } from "./trace-file.js";
export { TraceRecorder, type TraceRecorderOptions } from "./trace-recorder.js";
export { type WideningOptions, wideningPlans } from "./widening-plans.js";
export {
  openWideningRunner,
  type Widening,
  type WideningRunner,
  type WideningRunnerOptions,
} from "./widening-runner.js";
