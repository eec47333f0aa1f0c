import type { Plan } from "./plan.js";

/** What evaluating one plan gave. */
export interface PlanScores {
  /** Fitness per sample, in sample order. */
  readonly scores: Float64Array;
  /** 1 where a sample is answered right, else 0; absent for text without right answers. */
  readonly correct?: Uint8Array;
}

/** Work of an executor since it was made. One token through one layer counts 1. */
export interface WorkCounters {
  /** Token x layer evaluations done. */
  readonly tokenLayers: number;
  /** Token x layer evaluations avoided by reusing activations at layer boundaries. */
  readonly avoidedTokenLayers: number;
}

/** Where candidates are evaluated: worker threads of this machine, or many machines. */
export interface Executor extends AsyncDisposable {
  /** How many plans to pass at once so that every worker has something to do. */
  readonly preferredBatch: number;
  /** Results in the order of `plans`. Results do not depend on the number of workers. */
  evaluate(plans: readonly Plan[], options?: { signal?: AbortSignal }): Promise<PlanScores[]>;
  work(): WorkCounters;
  dispose(): Promise<void>;
}
