import type { RunEmitter } from "./events.js";
import type { MoeModel } from "./model.js";
import type { Rng } from "./rng.js";
import type { ExtraField, SampleField, Statistics } from "./statistics.js";
import type { WeightReader } from "./tensor.js";

/** Scores experts: the larger the score, the more the expert matters. Created by a plugin of kind "criterion". */
export interface Criterion {
  /** What `score` reads. The caller provides it or refuses before any work. */
  readonly needs: {
    readonly statistics: boolean;
    readonly weights: boolean;
    /** What the statistics must have of what is collected on demand; absent: nothing. */
    readonly extras?: readonly ExtraField[];
    /** What the sample of tokens in the statistics must have; absent: no sample is needed. */
    readonly sample?: readonly SampleField[];
  };
  /**
   * @returns one array per MoE layer, in layer order, of one finite score per expert
   * @throws COPPICE_STATS_MISSING, COPPICE_STATS_MODEL
   */
  score(request: ScoreRequest): Promise<Float64Array[]>;
}

export interface ScoreRequest {
  readonly model: MoeModel;
  readonly statistics?: Statistics;
  readonly weights?: WeightReader;
  /**
   * Experts that every layer is to keep, where the caller knows: criteria that choose sets then score so that
   * `selectExperts` finds the set that they chose for this number. Others need not look at it.
   */
  readonly keep?: number;
  /** Experts per token that the kept ones will be chosen with, where that is not the model's own top-k. */
  readonly topK?: number;
  readonly rng: Rng;
  /** Gets `progress` where the work takes long. */
  readonly emitter?: RunEmitter;
  readonly signal?: AbortSignal;
}
