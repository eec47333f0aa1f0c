import {
  addDelta,
  downDelta,
  type LayerPlan,
  type MlpSpec,
  type MoeSpec,
  mergeRows,
  mergeUnits,
  onlyExpert,
  type RouterRowValues,
  roundToStored,
  storedRouterRows,
} from "@coppice/core";
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

/** The slots of one layer under `plan`; what a plan leaves unchanged shares the arrays of the loaded experts. */
export function planExperts(
  spec: MoeSpec,
  experts: readonly Mlp[],
  router: Router,
  plan: LayerPlan | undefined,
): PlannedExperts {
  if (!plan) return { slots: experts, router, routerRows: experts.length };
  const slots = plan.experts.map((_, slot) => slotExpert(spec, experts, plan, slot));
  if (plan.routerMap) return { slots, router, routerRows: experts.length };
  const own: Partial<RouterRowValues> = plan.router ? storedRouterRows(plan.router, spec.router) : {};
  const kept = (values: Float32Array) => keptRows(values, experts.length, plan.experts);
  return {
    slots,
    router: {
      weight: own.weight ?? kept(router.weight),
      bias: own.bias ?? (router.bias && kept(router.bias)),
      correction: own.correction ?? (router.correction && kept(router.correction)),
    },
    routerRows: plan.experts.length,
  };
}

/** Rows of `values` [experts, ...] that belong to the kept experts. */
function keptRows(values: Float32Array, experts: number, kept: readonly number[]): Float32Array {
  const size = values.length / experts;
  const rows = floats(kept.length * size);
  kept.forEach((expert, slot) => {
    rows.set(values.subarray(expert * size, (expert + 1) * size), slot * size);
  });
  return rows;
}

type Part = "gate" | "up" | "down" | "gateBias" | "upBias" | "downBias";

/** Merged, changed and rounded as it is stored, so that it has the bits that an exported checkpoint would have. */
function slotExpert(spec: MoeSpec, experts: readonly Mlp[], plan: LayerPlan, slot: number): Mlp {
  const row = plan.merge?.[slot];
  const units = plan.units?.[slot];
  const unchanged = row ? onlyExpert(row) : plan.experts[slot];
  const whole = unchanged === undefined ? undefined : experts[unchanged];
  const delta = downDelta(plan, slot);
  if (whole && !units && !delta) return whole;
  const first = experts[0] as Mlp;
  const values = (part: Part): Float32Array | undefined => {
    const ref = (spec.experts[0] as MlpSpec)[part];
    if (!ref) return undefined;
    const byUnit = units && part !== "downBias";
    const change = part === "down" ? delta : undefined;
    if (whole && !byUnit && !change) return whole[part];
    const out = floats((first[part] as Float32Array).length);
    if (byUnit) {
      const sources = units.map((source) => ({
        source,
        values: experts[source.expert]?.[part] as Float32Array,
      }));
      mergeUnits(part, sources, first.width, out);
    } else if (whole) out.set(whole.down);
    else {
      const sources = experts.map((expert) => expert[part] as Float32Array);
      mergeRows(sources, row as readonly number[], out);
    }
    if (change) addDelta(out, change);
    roundToStored(out, ref);
    return out;
  };
  return {
    ...first,
    gate: values("gate"),
    up: values("up") as Float32Array,
    down: values("down") as Float32Array,
    gateBias: values("gateBias"),
    upBias: values("upBias"),
    downBias: values("downBias"),
  };
}
