export { collectStatisticsByLayers, type LayerStreamOptions } from "./layer-stream.js";
export { createLocalExecutor, type LocalExecutorOptions } from "./local-executor.js";
export {
  createModelPool,
  type ModelPool,
  type ModelPoolOptions,
  type PoolGenerateOptions,
} from "./model-pool.js";
export {
  type AttentionSource,
  type BackendSource,
  openAttention,
  type PluginSource,
} from "./plugin-source.js";
export type { PoolSamplesOptions } from "./pool-samples.js";
export type { PoolStatisticsOptions, StatisticsOptions } from "./pool-statistics.js";
export type { PoolPositionOptions, PoolTaskOptions } from "./pool-task.js";
export type { ScorerOptions } from "./scorer.js";
export type { Isolation } from "./worker-port.js";
