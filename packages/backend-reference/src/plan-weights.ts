import { type LayerPlan, type MlpSpec, type MoeSpec, mergeRows, roundToStored } from "@coppice/core";
import { floats } from "./scratch.js";
import type { Mlp, Router } from "./weights.js";

/** What an MoE layer multiplies under a plan. */
export interface PlannedExperts {
  /** One per slot. */
  readonly slots: readonly Mlp[];
  /** Rows, biases and corrections in use: one per slot, or all of them under a router map. */
  readonly router: Router;
  readonly routerRows: number;
}

/** The slots of one layer under `plan`; unmerged slots share the arrays of the loaded experts. */
export function planExperts(
  spec: MoeSpec,
  experts: readonly Mlp[],
  router: Router,
  plan: LayerPlan | undefined,
): PlannedExperts {
  if (!plan) return { slots: experts, router, routerRows: experts.length };
  const { merge } = plan;
  const slots = merge
    ? merge.map((row) => mergedExpert(spec, experts, row))
    : plan.experts.map((expert) => experts[expert] as Mlp);
  if (plan.routerMap) return { slots, router, routerRows: experts.length };
  const rows = (values: Float32Array): Float32Array => {
    const size = values.length / experts.length;
    const kept = floats(plan.experts.length * size);
    plan.experts.forEach((expert, slot) => {
      kept.set(values.subarray(expert * size, (expert + 1) * size), slot * size);
    });
    return kept;
  };
  return {
    slots,
    router: {
      weight: rows(router.weight),
      bias: router.bias && rows(router.bias),
      correction: router.correction && rows(router.correction),
    },
    routerRows: plan.experts.length,
  };
}

type Part = "gate" | "up" | "down" | "gateBias" | "upBias" | "downBias";

/** Merged and rounded as it is stored, so that it has the bits that an exported checkpoint would have. */
function mergedExpert(spec: MoeSpec, experts: readonly Mlp[], row: readonly number[]): Mlp {
  const used = row.flatMap((value, expert) => (value === 0 ? [] : [expert]));
  const only = used.length === 1 && row[used[0] as number] === 1 ? experts[used[0] as number] : undefined;
  if (only) return only;
  const first = experts[0] as Mlp;
  const optional = (part: Part): Float32Array | undefined => {
    const ref = (spec.experts[0] as MlpSpec)[part];
    if (!ref) return undefined;
    const out = floats((first[part] as Float32Array).length);
    mergeRows(
      experts.map((expert) => expert[part] as Float32Array),
      row,
      out,
    );
    roundToStored(out, ref);
    return out;
  };
  return {
    ...first,
    gate: optional("gate"),
    up: optional("up") as Float32Array,
    down: optional("down") as Float32Array,
    gateBias: optional("gateBias"),
    upBias: optional("upBias"),
    downBias: optional("downBias"),
  };
}
