import type { RouterSpec } from "./model.js";
import { unpackFloats } from "./packed-floats.js";
import type { LayerPlan, RouterRows } from "./plan.js";
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

/**
 * The router values that run under a plan, one row per slot: the plan's own where it has any, else those of its experts.
 * @param whole of all original experts
 */
export function plannedRouter(
  whole: RouterRowValues,
  { experts, router: rows }: Pick<LayerPlan, "experts" | "router">,
  router: RouterSpec,
): RouterRowValues {
  const own = rows && storedRouterRows(rows, router);
  const kept = (values: Float32Array) => {
    const size = values.length / (router.weight.shape[0] as number);
    const out = new Float32Array(experts.length * size);
    experts.forEach((expert, slot) => {
      out.set(values.subarray(expert * size, (expert + 1) * size), slot * size);
    });
    return out;
  };
  return {
    weight: own?.weight ?? kept(whole.weight),
    bias: own?.bias ?? (whole.bias && kept(whole.bias)),
    correction: own?.correction ?? (whole.correction && kept(whole.correction)),
  };
}

/**
 * Router logits that rows and biases give, summed in float64: [tokens, slots].
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
  for (let token = 0; token < tokens; token++) {
    const from = token * hidden;
    for (let slot = 0; slot < slots; slot++) {
      const row = slot * hidden;
      let sum = bias?.[slot] ?? 0;
      for (let i = 0; i < hidden; i++) sum += (weight[row + i] as number) * (inputs[from + i] as number);
      out[token * slots + slot] = sum;
    }
  }
  return out;
}
