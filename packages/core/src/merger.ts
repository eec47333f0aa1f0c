import type { Criterion, ScoreRequest } from "./criterion.js";
import type { LayerPlan } from "./plan.js";

/** Makes layers smaller by merging experts. Created by a plugin of kind "merger". */
export interface Merger {
  /** What `merge` reads. The caller provides it or refuses before any work. */
  readonly needs: Criterion["needs"];
  /**
   * @returns one layer plan per MoE layer, in layer order, with `keep` slots each: slot i answers to the router row of
   * one of the experts that are merged into it, and rows of `merge`, where there are any, sum to 1
   * @throws COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS, COPPICE_STATS_MISSING, COPPICE_STATS_MODEL
   */
  merge(request: MergeRequest): Promise<LayerPlan[]>;
}

export interface MergeRequest extends ScoreRequest {
  /** Experts that every layer is left with. */
  readonly keep: number;
}
