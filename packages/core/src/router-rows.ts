import type { RouterSpec } from "./model.js";
import { unpackFloats } from "./packed-floats.js";
import type { RouterRows } from "./plan.js";
import { roundToStored } from "./stored-round.js";
import type { TensorRef } from "./tensor.js";

/** Values of a router with one row per slot; undefined: those of the kept experts, where the router has any. */
export interface RouterRowValues {
  /** [slots, hidden] */
  readonly weight: Float32Array;
  /** [slots] */
  readonly bias: Float32Array | undefined;
  /** [slots] */
  readonly correction: Float32Array | undefined;
}

/**
 * The values of a plan's router rows, each rounded to what its tensor of the model can hold: what is evaluated is what
 * an export stores.
 */
export function storedRouterRows(
  { weight, bias, correction }: RouterRows,
  router: RouterSpec,
): RouterRowValues {
  const rounded = (values: Float32Array, ref: TensorRef) => {
    roundToStored(values, ref);
    return values;
  };
  return {
    weight: rounded(unpackFloats(weight), router.weight),
    bias: bias && router.bias && rounded(Float32Array.from(bias), router.bias),
    correction: correction && router.correction && rounded(Float32Array.from(correction), router.correction),
  };
}
