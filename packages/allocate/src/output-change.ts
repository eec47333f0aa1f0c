import { type Routing, skipped } from "@coppice/core";
import type { SampledLayer } from "./sampled-layers.js";

/** Of the routed experts' outputs of a block over the sampled tokens. */
export interface OutputChange {
  /** Σ ‖y - y'‖² */
  readonly squared: number;
  /** Σ ‖y‖², y being the output under the routing that is compared with. */
  readonly whole: number;
}

/**
 * What it changes of the output of a block that it routes otherwise: Σ_t dᵀ G d, d the change of every expert's gate weight
 * and G the Gram matrix of the experts' outputs (`LayerSample.grams`), so that no expert runs. Slots stand for the experts
 * that they answer to, merged or not. Where gate weights scale inputs, outputs contain them and d is a change of 0 or 1.
 */
export function outputChange(
  { layer, plan, sample, tokens }: SampledLayer,
  before: Routing,
  after: Routing,
): OutputChange {
  const { experts, router } = layer.feedForward;
  const grams = sample.grams as Float32Array;
  const add = ({ topK, slots, gates }: Routing, token: number, sign: number, out: Float64Array) => {
    for (let k = token * topK; k < (token + 1) * topK; k++) {
      const slot = slots[k] as number;
      if (slot === skipped) continue;
      const expert = plan.experts[slot] as number;
      out[expert] = (out[expert] as number) + sign * (router.scalesInput ? 1 : (gates[k] as number));
    }
    return out;
  };
  let squared = 0;
  let whole = 0;
  for (let token = 0; token < tokens; token++) {
    const start = token * experts.length ** 2;
    const gates = add(before, token, 1, new Float64Array(experts.length));
    whole += quadratic(grams, start, gates);
    squared += quadratic(grams, start, add(after, token, -1, gates));
  }
  return { squared: Math.max(0, squared), whole };
}

/** vᵀ G v */
function quadratic(grams: Float32Array, start: number, values: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    if (values[i] === 0) continue;
    for (let j = 0; j < values.length; j++) {
      if (values[j] === 0) continue;
      sum += (values[i] as number) * (values[j] as number) * (grams[start + i * values.length + j] as number);
    }
  }
  return sum;
}
