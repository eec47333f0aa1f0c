import { type LayerPlan, type LayerStatistics, moment } from "@coppice/core";
import * as v from "valibot";

/** By what the members of a group are weighted when they are averaged. */
export type Weighting = "frequency" | "uniform" | "saliency";

export const weightings = ["frequency", "uniform", "saliency"] as const satisfies readonly Weighting[];

/** How the members of a group are weighted when they are merged. */
export interface WeightingOptions {
  /**
   * `frequency`: by the tokens that were routed to each (M-SMoE, HC-SMoE); `uniform`: alike (plain averaging);
   * `saliency`: by the mean norm of what each added to its tokens (REAP, REAM).
   * @default "frequency"
   */
  readonly weights?: Weighting | undefined;
}

export const weightingOptions = { weights: v.optional(v.picklist(weightings), "frequency") };

/** Experts that become one. */
export interface ExpertGroup {
  /** The member whose router row the group keeps. */
  readonly leader: number;
  /** All members, the leader included. */
  readonly members: readonly number[];
}

/** REAP's `(1 / n_j) Σ_{t routed to j} g_tj ‖f_j(x_t)‖₂` (arXiv 2510.13999) of every expert; 0 for an unused one. */
export function saliency(sums: LayerStatistics): Float64Array {
  const { count } = sums;
  return moment(sums, 1, 1).map((sum, expert) =>
    (count[expert] as number) > 0 ? sum / (count[expert] as number) : 0,
  );
}

/**
 * The weight of every expert of a layer, [E].
 * @param sums absent only where `weights` is `uniform`
 */
export function expertWeights(
  experts: number,
  sums: LayerStatistics | undefined,
  weights: Weighting,
): Float64Array {
  if (!sums || weights === "uniform") return new Float64Array(experts).fill(1);
  return weights === "frequency" ? sums.count : saliency(sums);
}

/**
 * The plan of a layer whose experts are merged group by group, groups by ascending leader: row i of `merge` has the weight
 * of every member of group i, and they sum to 1. A group whose members all weigh 0 weighs them alike.
 * @param weights [E], at least 0
 */
export function groupPlan(
  layer: number,
  groups: readonly ExpertGroup[],
  weights: ArrayLike<number>,
): LayerPlan {
  const sorted = [...groups].sort((a, b) => a.leader - b.leader);
  const merge = sorted.map(({ members }) => {
    const total = members.reduce((sum, expert) => sum + (weights[expert] as number), 0);
    const row = new Array<number>(weights.length).fill(0);
    for (const expert of members) {
      row[expert] = total > 0 ? (weights[expert] as number) / total : 1 / members.length;
    }
    return row;
  });
  return { layer, experts: sorted.map(({ leader }) => leader), merge };
}
