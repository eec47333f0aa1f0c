export type { BackendSource } from "./backend-source.js";
export { collectStatisticsByLayers, type LayerStreamOptions } from "./layer-stream.js";
export { createLocalExecutor, type LocalExecutorOptions } from "./local-executor.js";
export { createModelPool, type ModelPool, type ModelPoolOptions } from "./model-pool.js";
export type { PoolSamplesOptions } from "./pool-samples.js";
export type { PoolStatisticsOptions, StatisticsOptions } from "./pool-statistics.js";
export type { PoolTaskOptions } from "./pool-task.js";
export type { ScorerOptions } from "./scorer.js";
export type { Isolation } from "./worker-port.js";
