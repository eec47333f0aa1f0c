import type { LayerPlan, LayerStatistics } from "@coppice/core";
import * as v from "valibot";

/** How the members of a group are weighted when they are merged. */
export interface WeightingOptions {
  /**
   * `frequency`: by the tokens that were routed to each (M-SMoE, HC-SMoE); `uniform`: alike (plain averaging).
   * @default "frequency"
   */
  readonly weights?: "frequency" | "uniform" | undefined;
}

export const weightingOptions = { weights: v.optional(v.picklist(["frequency", "uniform"]), "frequency") };

/** Experts that become one. */
export interface ExpertGroup {
  /** The member whose router row the group keeps. */
  readonly leader: number;
  /** All members, the leader included. */
  readonly members: readonly number[];
}

/**
 * The plan of a layer whose experts are merged group by group, groups by ascending leader: row i of `merge` has the weight
 * of every member of group i, and they sum to 1. A group of which no member was ever routed to weighs its members alike.
 */
export function groupPlan(
  { layer, count }: LayerStatistics,
  groups: readonly ExpertGroup[],
  weights: "frequency" | "uniform",
): LayerPlan {
  const sorted = [...groups].sort((a, b) => a.leader - b.leader);
  const merge = sorted.map(({ members }) => {
    const usage = members.map((expert) => (weights === "uniform" ? 1 : (count[expert] as number)));
    const total = usage.reduce((sum, value) => sum + value, 0);
    const row = new Array<number>(count.length).fill(0);
    members.forEach((expert, i) => {
      row[expert] = total > 0 ? (usage[i] as number) / total : 1 / members.length;
    });
    return row;
  });
  return { layer, experts: sorted.map(({ leader }) => leader), merge };
}
