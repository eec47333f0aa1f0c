import type { Plan, RunEmitter } from "@coppice/core";
import type { PositionTask, Task } from "@coppice/evaluate";
import type { AttentionSource } from "./plugin-source.js";

export interface PoolTaskOptions {
  readonly task: Task;
  /** First samples only; for text, first windows. */
  readonly limit?: number;
  /** Prompts in the checkpoint's chat template. Default false. */
  readonly chat?: boolean;
  readonly signal?: AbortSignal;
  /** Gets `progress`. */
  readonly emitter?: RunEmitter;
}

export interface PoolPositionOptions extends PositionTask {
  /** Default: the model as it is. */
  readonly plan?: Plan;
  /** Default: as the model is. */
  readonly attention?: AttentionSource;
  readonly signal?: AbortSignal;
  /** Gets `progress`. */
  readonly emitter?: RunEmitter;
}
