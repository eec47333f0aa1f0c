import {
  type LayerPlan,
  packFloats,
  type RouterRows,
  type RouterSpec,
  storedRouterRows,
} from "@coppice/core";

/** Values of a router with one row per slot, in float64 while they are fitted. */
export interface RouterValues {
  /** [slots, hidden] */
  readonly weight: Float64Array;
  /** [slots]; undefined where the router has none, as is the next. */
  readonly bias: Float64Array | undefined;
  /** [slots] */
  readonly correction: Float64Array | undefined;
}

/** Values of a whole router, one row per original expert. */
export interface WholeRouter {
  /** [experts, hidden] */
  readonly weight: Float32Array;
  /** [experts] */
  readonly bias: Float32Array | undefined;
  /** [experts] */
  readonly correction: Float32Array | undefined;
}

/** The values that run under a plan: its own, else those of the kept experts. */
export function plannedValues(whole: WholeRouter, plan: LayerPlan, router: RouterSpec): RouterValues {
  const own = plan.router && storedRouterRows(plan.router, router);
  const hidden = router.weight.shape[1] as number;
  const kept = (values: Float32Array, size: number) =>
    Float64Array.from({ length: plan.experts.length * size }, (_, i) => {
      const expert = plan.experts[Math.floor(i / size)] as number;
      return values[expert * size + (i % size)] as number;
    });
  const perSlot = (key: "bias" | "correction") =>
    own?.[key] ? Float64Array.from(own[key]) : whole[key] && kept(whole[key], 1);
  return {
    weight: own ? Float64Array.from(own.weight) : kept(whole.weight, hidden),
    bias: perSlot("bias"),
    correction: perSlot("correction"),
  };
}

/** The values as a plan holds them: rounded to those that the tensors of the model can hold. */
export function routerRows(values: RouterValues, router: RouterSpec): RouterRows {
  const rows = ({
    weight,
    bias,
    correction,
  }: { [key in keyof RouterValues]: Iterable<number> | undefined }) => ({
    weight: packFloats(Float32Array.from(weight ?? [])),
    ...(bias && { bias: Array.from(bias) }),
    ...(correction && { correction: Array.from(correction) }),
  });
  return rows(storedRouterRows(rows(values), router));
}

/**
 * Logits of all tokens, summed in float64: [tokens, slots].
 * @param weight [slots, hidden]
 * @param bias [slots]
 * @param inputs [tokens, hidden]
 */
export function routerLogits(
  weight: ArrayLike<number>,
  bias: ArrayLike<number> | undefined,
  inputs: Float32Array,
  hidden: number,
): Float32Array {
  const slots = weight.length / hidden;
  const tokens = inputs.length / hidden;
  const out = new Float32Array(tokens * slots);
  for (let t = 0; t < tokens; t++) {
    const from = t * hidden;
    for (let slot = 0; slot < slots; slot++) {
      const row = slot * hidden;
      let sum = bias?.[slot] ?? 0;
      for (let h = 0; h < hidden; h++) sum += (weight[row + h] as number) * (inputs[from + h] as number);
      out[t * slots + slot] = sum;
    }
  }
  return out;
}
