import type { RunEmitter } from "@coppice/core";
import type { Task } from "@coppice/evaluate";

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
