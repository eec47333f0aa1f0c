import {
  type LayerPlan,
  packFloats,
  plannedRouter,
  type RouterRows,
  type RouterRowValues,
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

/** The values that run under a plan: its own, else those of the kept experts. */
export function plannedValues(whole: RouterRowValues, plan: LayerPlan, router: RouterSpec): RouterValues {
  const { weight, bias, correction } = plannedRouter(whole, plan, router);
  return {
    weight: Float64Array.from(weight),
    bias: bias && Float64Array.from(bias),
    correction: correction && Float64Array.from(correction),
  };
}

/** The values as a plan holds them: rounded to those that the tensors of the model can hold. */
export function routerRows(values: RouterValues, router: RouterSpec): RouterRows {
  return packed(storedRouterRows(packed(values), router));
}

function packed({ weight, bias, correction }: RouterValues | RouterRowValues): RouterRows {
  return {
    weight: packFloats(Float32Array.from(weight)),
    ...(bias && { bias: Array.from(bias) }),
    ...(correction && { correction: Array.from(correction) }),
  };
}
