import type { Plan } from "./plan.js";

/** Fewer samples than this per part of a race tell too little. */
const leastPartSamples = 8;

/**
 * Parts in which samples are evaluated where poor plans are stopped early: sample i belongs to part i modulo their number,
 * which depends on nothing but the number of samples. Parts are about as mixed as the whole, because samples are in no
 * order of difficulty.
 */
export function raceParts(samples: number): number {
  return samples >= 4 * leastPartSamples ? 4 : 1;
}

/** What evaluating one plan gave. */
export interface PlanScores {
  /** Fitness per sample that was evaluated, in sample order. */
  readonly scores: Float64Array;
  /** 1 where a sample is answered right, else 0; absent for text without right answers. */
  readonly correct?: Uint8Array;
}

/**
 * Work of an executor since it was made. Both together are what the same calls cost without any reuse: every token of
 * every sample asked for through every layer. Samples that a race left out were not asked for.
 */
export interface WorkCounters {
  /** Token x layer evaluations really done, as backends count them (`RunResult.tokenLayers`). */
  readonly tokenLayers: number;
  /**
   * Token x layer evaluations avoided: layers in which plans agree, equal beginnings of samples, and tokens of the last
   * layer that no answer needs.
   */
  readonly avoidedTokenLayers: number;
  /** Token x expert evaluations really done, as backends count them (`RunResult.expertTokens`). */
  readonly expertTokens: number;
  /**
   * Token x expert evaluations avoided: those of token-layers that were avoided, choices that a plan skips, and outputs of experts
   * that an earlier plan had computed of the same inputs (`LayerMemory`).
   */
  readonly avoidedExpertTokens: number;
}

export const noWork: WorkCounters = {
  tokenLayers: 0,
  avoidedTokenLayers: 0,
  expertTokens: 0,
  avoidedExpertTokens: 0,
};

/** What `a` and `sign` times `b` are together. */
export function addWork(a: WorkCounters, b: WorkCounters, sign: 1 | -1 = 1): WorkCounters {
  return {
    tokenLayers: a.tokenLayers + sign * b.tokenLayers,
    avoidedTokenLayers: a.avoidedTokenLayers + sign * b.avoidedTokenLayers,
    expertTokens: a.expertTokens + sign * b.expertTokens,
    avoidedExpertTokens: a.avoidedExpertTokens + sign * b.avoidedExpertTokens,
  };
}

/** Where candidates are evaluated: worker threads of this machine, or many machines. */
export interface Executor extends AsyncDisposable {
  /** How many plans to pass at once so that every worker has something to do. */
  readonly preferredBatch: number;
  /** `raceParts` of its samples, when they can be evaluated in parts; absent: only all at once. */
  readonly parts?: number;
  /**
   * Evaluations of one part of one plan that keep it busy; where fewer races are open, further parts are evaluated at once, whether
   * they will be needed or not. Absent: waiting for a part costs nothing.
   */
  readonly busyParts?: number;
  /**
   * Results in the order of `plans`, of all samples or of those of one part. Results do not depend on the number of
   * workers. Calls may overlap where there are `parts`.
   */
  evaluate(
    plans: readonly Plan[],
    options?: { readonly signal?: AbortSignal; readonly part?: number },
  ): Promise<PlanScores[]>;
  work(): WorkCounters;
  dispose(): Promise<void>;
}
