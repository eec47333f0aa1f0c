import { type LayerPlan, type MoeSpec, mergeRows, roundToDtype } from "@coppice/core";
import { floats } from "./scratch.js";
import type { GatedMlp } from "./weights.js";

/** What an MoE layer multiplies under a plan. */
export interface PlannedExperts {
  /** One per slot. */
  readonly slots: readonly GatedMlp[];
  /** Router rows in use, [n, hidden]: one per slot, or all of them under a router map. */
  readonly router: Float32Array;
  readonly routerRows: number;
}

/** The slots of one layer under `plan`; unmerged slots share the arrays of the loaded experts. */
export function planExperts(
  spec: MoeSpec,
  experts: readonly GatedMlp[],
  router: Float32Array,
  plan: LayerPlan | undefined,
): PlannedExperts {
  if (!plan) return { slots: experts, router, routerRows: experts.length };
  const { merge } = plan;
  const slots = merge
    ? merge.map((row) => mergedExpert(spec, experts, row))
    : plan.experts.map((expert) => experts[expert] as GatedMlp);
  if (plan.routerMap) return { slots, router, routerRows: experts.length };
  const hidden = router.length / experts.length;
  const kept = floats(plan.experts.length * hidden);
  plan.experts.forEach((expert, slot) => {
    kept.set(router.subarray(expert * hidden, (expert + 1) * hidden), slot * hidden);
  });
  return { slots, router: kept, routerRows: plan.experts.length };
}

/** Merged and rounded to the stored dtype, so that it has the bits that an exported checkpoint would have. */
function mergedExpert(spec: MoeSpec, experts: readonly GatedMlp[], row: readonly number[]): GatedMlp {
  const used = row.flatMap((value, expert) => (value === 0 ? [] : [expert]));
  const only = used.length === 1 && row[used[0] as number] === 1 ? experts[used[0] as number] : undefined;
  if (only) return only;
  const part = (name: "gate" | "up" | "down") => {
    const first = experts[0] as GatedMlp;
    const out = floats(first[name].length);
    mergeRows(
      experts.map((expert) => expert[name]),
      row,
      out,
    );
    roundToDtype(out, (spec.experts[0] as MoeSpec["experts"][number])[name].dtype);
    return out;
  };
  return { gate: part("gate"), up: part("up"), down: part("down"), width: (experts[0] as GatedMlp).width };
}
