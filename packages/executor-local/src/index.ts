export type { BackendSource } from "./backend-source.js";
export { createLocalExecutor, type LocalExecutorOptions } from "./local-executor.js";
export {
  createModelPool,
  type ModelPool,
  type ModelPoolOptions,
  type PoolTaskOptions,
} from "./model-pool.js";
export type { ScorerOptions } from "./scorer.js";
export type { Isolation } from "./worker-port.js";
