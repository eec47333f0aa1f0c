import {
  type ActivationSpec,
  type LayerPlan,
  type MlpSpec,
  type MoeSpec,
  type Plan,
  roundToStored,
  type TensorRef,
} from "@coppice/core";
import type { MemoryModel } from "./memory-model.js";
import { applyNorm, type SlowWeights, slowAttention } from "./slow-attention.js";
import { plus, product, sigmoid, times, type Vector } from "./slow-math.js";
import { chooseSlots } from "./slow-routing.js";

/** One chosen slot of one token. */
export interface SlowChoice {
  readonly slot: number;
  readonly gate: number;
  /** Unweighted expert output f(x), or f(gate · x) when the gate weight scales the input, [hidden]. */
  readonly output: readonly number[];
}

/** What one MoE layer did, token by token. */
export interface SlowLayer {
  readonly layer: number;
  /** [tokens][hidden], the residual stream before the MoE block and its norm. */
  readonly residual: readonly (readonly number[])[];
  /** [tokens][hidden], input of the MoE block after its norm. */
  readonly input: readonly (readonly number[])[];
  /** [tokens][experts], router logits of all original experts. */
  readonly routerLogits: readonly (readonly number[])[];
  /** [tokens][k], by descending selection score. */
  readonly choices: readonly (readonly SlowChoice[])[];
}

export interface SlowResult {
  /** [tokens][vocab] */
  readonly logits: readonly (readonly number[])[];
  /** One entry per MoE layer. */
  readonly layers: readonly SlowLayer[];
  /** [layers + 1][tokens][hidden]: input of every layer, then the output of the last. */
  readonly hidden: readonly (readonly (readonly number[])[])[];
}

/**
 * The whole model as its formulas are written, in float64, one token after the other, without a cache, a batch or
 * a matrix product worth the name. Dropped experts are not removed: their router logits become -1e9. It shares no
 * code with any backend, nor with the routing and the rotary frequencies of `@coppice/core`, which makes it the
 * yardstick of plans on every kind of model.
 * @param pieces lengths of the runs that a cache was fed by, which rotary scalings may depend on; default one run
 */
export function slowForward(
  source: MemoryModel,
  ids: readonly number[],
  plan?: Plan,
  pieces: readonly number[] = [ids.length],
): SlowResult {
  const { model } = source;
  const values = (ref: TensorRef) => source.tensors.get(ref.name) as Float32Array;
  const ends = pieces.map((_, i) => pieces.slice(0, i + 1).reduce((sum, piece) => sum + piece, 0));
  const weights: SlowWeights = {
    values,
    lengthAt: (position) => ends.find((end) => position < end) as number,
  };
  const plans = new Map(plan?.layers.map((layer) => [layer.layer, layer]));
  const residual = (x: Vector, added: Vector) => plus(x, times(model.residualScale ?? 1, added));

  const layers: SlowLayer[] = [];
  const hidden: Vector[][] = [];
  const size = model.hiddenSize;
  let xs = ids.map((id) => {
    const row = values(model.embedding).subarray(id * size, (id + 1) * size);
    return times(model.embeddingScale ?? 1, [...row]);
  });
  for (const layer of model.layers) {
    hidden.push(xs);
    const attended = slowAttention(
      layer.attention,
      xs.map((x) => applyNorm(layer.attentionNorm, x, weights)),
      weights,
    );
    xs = xs.map((x, t) => residual(x, attended[t] as Vector));
    const input = xs.map((x) => applyNorm(layer.feedForwardNorm, x, weights));
    const { feedForward } = layer;
    if (feedForward.kind === "other") throw new Error(`layer ${layer.index} has no formula`);
    if (feedForward.kind === "dense") {
      const dense = mlpValues(feedForward.mlp, values);
      xs = xs.map((x, t) => residual(x, applyMlp(dense, input[t] as Vector)));
      continue;
    }
    const { added, ...shown } = slowExperts(feedForward, plans.get(layer.index), input, values);
    layers.push({ layer: layer.index, residual: xs, input, ...shown });
    xs = xs.map((x, t) => residual(x, added[t] as Vector));
  }
  hidden.push(xs);
  const headBias = model.headBias && values(model.headBias);
  const logits = xs.map((x) => {
    const normed = applyNorm(model.finalNorm, x, weights);
    return times(model.logitScale ?? 1, product(values(model.head), normed, headBias));
  });
  return { logits, layers, hidden };
}

type Values = (ref: TensorRef) => Float32Array;

function slowExperts(spec: MoeSpec, plan: LayerPlan | undefined, input: Vector[], values: Values) {
  const { router, shared, sharedGate } = spec;
  const slots = slotWeights(spec, plan, values);
  const correction = router.correction && values(router.correction);
  const bias = router.bias && values(router.bias);
  const routerLogits = input.map((x) => product(values(router.weight), x, bias));
  const choices = input.map((x, t) =>
    chooseSlots(routerLogits[t] as Vector, router, plan, correction).map(({ slot, gate }): SlowChoice => {
      const expert = slots[slot] as MlpValues;
      return { slot, gate, output: applyMlp(expert, router.scalesInput ? times(gate, x) : x) };
    }),
  );
  const sharedValues = shared && mlpValues(shared, values);
  const added = input.map((x, t) => {
    let sum: Vector = x.map(() => 0);
    for (const { gate, output } of choices[t] as SlowChoice[]) {
      sum = plus(sum, times(router.scalesInput ? 1 : gate, output));
    }
    if (!sharedValues) return sum;
    const share = sharedGate ? sigmoid(product(values(sharedGate), x)[0] as number) : 1;
    return plus(sum, times(share, applyMlp(sharedValues, x)));
  });
  return { routerLogits, choices, added };
}

const mlpParts = ["gate", "up", "down", "gateBias", "upBias", "downBias"] as const;

type MlpValues = { readonly activation: ActivationSpec } & {
  readonly [part in (typeof mlpParts)[number]]?: Float32Array;
};

function mlpValues(spec: MlpSpec, values: Values): MlpValues {
  const parts = mlpParts.map((part) => [part, spec[part] && values(spec[part])]);
  return { ...Object.fromEntries(parts), activation: spec.activation };
}

function applyMlp({ activation, gate, up, down, ...biases }: MlpValues, x: Vector): Vector {
  const ups = product(up as Float32Array, x, biases.upBias);
  const gates = gate ? product(gate, x, biases.gateBias) : ups;
  const inner = ups.map((u, i) => activate(activation, gates[i] as number, u));
  return product(down as Float32Array, inner, biases.downBias);
}

function activate(activation: ActivationSpec, gate: number, up: number): number {
  switch (activation.kind) {
    case "silu":
      return gate * sigmoid(gate) * up;
    case "relu2":
      return Math.max(0, up) ** 2;
    case "clamped-swiglu": {
      const { limit, alpha } = activation;
      const low = Math.min(gate, limit);
      return (Math.min(limit, Math.max(-limit, up)) + 1) * low * sigmoid(alpha * low);
    }
  }
}

/** Σ_j merge[i][j] · θ_j, rounded to what the checkpoint would store. */
function slotWeights(spec: MoeSpec, plan: LayerPlan | undefined, values: Values): MlpValues[] {
  const experts = spec.experts.map((expert) => mlpValues(expert, values));
  if (!plan?.merge) return plan ? plan.experts.map((expert) => experts[expert] as MlpValues) : experts;
  return plan.merge.map((row) => {
    const parts = mlpParts.flatMap((part) => {
      const ref = spec.experts[0]?.[part];
      if (!ref) return [];
      const sums = Float32Array.from(values(ref), (_, i) =>
        row.reduce((sum, factor, j) => sum + factor * (experts[j]?.[part]?.[i] as number), 0),
      );
      roundToStored(sums, ref);
      return [[part, sums]];
    });
    return { ...(experts[0] as MlpValues), ...Object.fromEntries(parts) };
  });
}
