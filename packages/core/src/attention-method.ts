import type { AttentionMasker, AttentionPlan } from "./attention-plan.js";
import type { Runner } from "./backend.js";
import type { ChoiceSolver } from "./choice-solver.js";
import type { RunEmitter } from "./events.js";
import type { MoeModel } from "./model.js";
import type { Rng } from "./rng.js";
import type { WeightReader } from "./tensor.js";

/**
 * Limits attention. Created by a plugin of kind "attention": makes plans ahead of time, or masks while a text runs, and has
 * `plan` or `masker` accordingly.
 */
export interface AttentionMethod {
  /** What `plan` reads. The caller provides it or refuses before any work. */
  readonly needs: {
    readonly runner: boolean;
    readonly weights: boolean;
    readonly samples: boolean;
  };
  /**
   * @throws COPPICE_ATTENTION_BUDGET, COPPICE_ATTENTION_LENGTH, COPPICE_ATTENTION_UNSUPPORTED
   */
  plan?(request: AttentionPlanRequest): Promise<AttentionPlan>;
  /** What `plan` will take, told before it does; absent: next to nothing. Same errors. */
  estimate?(request: AttentionPlanRequest): AttentionEstimate;
  /** A new masker, for one cache or one run. */
  masker?(): AttentionMasker;
}

export interface AttentionEstimate {
  /** Memory besides the runner's. */
  readonly bytes: number;
  /** Layers that the runner computes, counted for every token. */
  readonly tokenLayers: number;
  /** Multiplications besides the runner's, on one core. */
  readonly multiplications: number;
}

export interface AttentionPlanRequest {
  readonly model: MoeModel;
  /** Has all layers. */
  readonly runner?: Runner;
  readonly weights?: WeightReader;
  /** Texts to profile on; those of `lengths[k]` tokens are what the profile at that length is made from. */
  readonly samples?: readonly AttentionSample[];
  /** Texts of lengths that are not profiled, by which one of several plans is chosen. */
  readonly validation?: readonly AttentionSample[];
  /** Context lengths, in tokens, at which the plan is to keep to `density`; ascending. */
  readonly lengths: readonly number[];
  /** Most that `spanDensity` may be at any of `lengths`, above 0 and at most 1. */
  readonly density: number;
  readonly rng: Rng;
  /** Chooses what heads get, for methods that solve a program; default: their own solver. */
  readonly solver?: ChoiceSolver;
  /** Gets `progress` where the work takes long. */
  readonly emitter?: RunEmitter;
  readonly signal?: AbortSignal;
}

export interface AttentionSample {
  readonly tokens: Int32Array;
  /** Position of the first token of the response, whose likelihood is what matters; 0: all of the text. */
  readonly responseFrom: number;
}
