import type { ActivationSpec, LayerPlan, MlpSpec, MoeSpec, Plan, SkipRule, TensorRef } from "@coppice/core";
import type { MemoryModel } from "./memory-model.js";
import { applyNorm, type SlowWeights, slowAttention } from "./slow-attention.js";
import { plus, product, range, sigmoid, times, total, type Vector } from "./slow-math.js";
import { mlpParts, routerValues, slotValues, type Values } from "./slow-plan.js";
import { chooseSlots, gateIfChosen } from "./slow-routing.js";

/** One chosen slot of one token. */
export interface SlowChoice {
  /** -1 for a choice that is skipped. */
  readonly slot: number;
  readonly gate: number;
  /** Unweighted expert output f(x), or f(gate · x) when the gate weight scales the input, [hidden]; 0 where skipped. */
  readonly output: readonly number[];
}

/** What one slot computes from one token. */
export interface SlowExpert {
  /** [hidden], as in `SlowChoice`, with the gate weight that the slot has when it is chosen. */
  readonly output: readonly number[];
  /** [width], hidden units: what down multiplies. */
  readonly units: readonly number[];
}

/** What one MoE layer did, token by token. */
export interface SlowLayer {
  readonly layer: number;
  /** [tokens][hidden], the residual stream before the MoE block and its norm. */
  readonly residual: readonly (readonly number[])[];
  /** [tokens][hidden], input of the MoE block after its norm. */
  readonly input: readonly (readonly number[])[];
  /** [tokens][experts], router logits of all original experts; those of kept experts by the plan's router rows. */
  readonly routerLogits: readonly (readonly number[])[];
  /** [tokens][k], by descending selection score. */
  readonly choices: readonly (readonly SlowChoice[])[];
  /** All slots of one token, whether it chose them or not. */
  every(token: number): SlowExpert[];
}

export interface SlowResult {
  /** [tokens][vocab] */
  readonly logits: readonly (readonly number[])[];
  /** One entry per MoE layer. */
  readonly layers: readonly SlowLayer[];
  /** [layers + 1][tokens][hidden]: input of every layer, then the output of the last. */
  readonly hidden: readonly (readonly (readonly number[])[])[];
  /** Queries and keys of every layer, positions turned into them. */
  readonly attention: readonly SlowHeads[];
}

export interface SlowHeads {
  /** [tokens][heads][keyDim] */
  readonly queries: readonly (readonly (readonly number[])[])[];
  /** [tokens][kvHeads][keyDim] */
  readonly keys: readonly (readonly (readonly number[])[])[];
}

/** Whether the query at one position sees the key at another in a query head of a layer, if the model lets it. */
export type SlowSight = (layer: number, head: number, query: number, key: number) => boolean;

/**
 * The whole model as its formulas are written, in float64, one token after the other, without a cache, a batch or
 * a matrix product worth the name. Dropped experts are not removed: their router logits become -1e9. It shares no
 * code with any backend, nor with the routing and the rotary frequencies of `@coppice/core`, which makes it the
 * yardstick of plans on every kind of model.
 * @param pieces lengths of the runs that a cache was fed by, which rotary scalings may depend on; default one run
 * @param sight what attention is limited to, such as the spans of a plan (`slowSight`)
 */
export function slowForward(
  source: MemoryModel,
  ids: readonly number[],
  plan?: Plan,
  pieces: readonly number[] = [ids.length],
  sight: SlowSight = () => true,
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
  const attention: SlowHeads[] = [];
  const size = model.hiddenSize;
  let xs = ids.map((id) => {
    const row = values(model.embedding).subarray(id * size, (id + 1) * size);
    return times(model.embeddingScale ?? 1, [...row]);
  });
  for (const layer of model.layers) {
    hidden.push(xs);
    const { attended, received, queries, keys } = slowAttention(
      layer.attention,
      xs.map((x) => applyNorm(layer.attentionNorm, x, weights)),
      weights,
      (head, query, key) => sight(layer.index, head, query, key),
    );
    attention.push({ queries, keys });
    xs = xs.map((x, t) => residual(x, attended[t] as Vector));
    const input = xs.map((x) => applyNorm(layer.feedForwardNorm, x, weights));
    const { feedForward } = layer;
    if (feedForward.kind === "other") throw new Error(`layer ${layer.index} has no formula`);
    if (feedForward.kind === "dense") {
      const dense = mlpValues(feedForward.mlp, values);
      xs = xs.map((x, t) => residual(x, applyMlp(dense, input[t] as Vector).output));
      continue;
    }
    const layerPlan = plans.get(layer.index);
    const rule = layerPlan?.skip ?? feedForward.router.skip;
    const spared = sparedBy(rule, received, input, weights);
    const { added, ...shown } = slowExperts(feedForward, layerPlan, input, spared, values);
    layers.push({ layer: layer.index, residual: xs, input, ...shown });
    xs = xs.map((x, t) => residual(x, added[t] as Vector));
  }
  hidden.push(xs);
  const headBias = model.headBias && values(model.headBias);
  const logits = xs.map((x) => {
    const normed = applyNorm(model.finalNorm, x, weights);
    return times(model.logitScale ?? 1, product(values(model.head), normed, headBias));
  });
  return { logits, layers, hidden, attention };
}

function slowExperts(
  spec: MoeSpec,
  plan: LayerPlan | undefined,
  input: Vector[],
  spared: readonly boolean[],
  values: Values,
) {
  const { router, shared, sharedGate } = spec;
  const slots = slotWeights(spec, plan, values);
  const { weight, bias, correction } = routerValues(router, plan, values);
  const routerLogits = input.map((x) => product(weight, x, bias));
  const choices = input.map((x, t) => {
    const chosen = chooseSlots(routerLogits[t] as Vector, router, plan, correction, spared[t] as boolean);
    return chosen.map(({ slot, gate }): SlowChoice => {
      if (slot < 0) return { slot, gate, output: x.map(() => 0) };
      return { slot, gate, ...applyMlp(slots[slot] as MlpValues, router.scalesInput ? times(gate, x) : x) };
    });
  });
  const every = (token: number) =>
    slots.map((mlp, slot): SlowExpert => {
      const x = input[token] as Vector;
      if (!router.scalesInput) return applyMlp(mlp, x);
      const logit = routerLogits[token]?.[plan?.experts[slot] ?? slot] as number;
      return applyMlp(mlp, times(gateIfChosen(logit, router), x));
    });
  const sharedValues = shared && mlpValues(shared, values);
  const added = input.map((x, t) => {
    let sum: Vector = x.map(() => 0);
    for (const { gate, output } of choices[t] as SlowChoice[]) {
      sum = plus(sum, times(router.scalesInput ? 1 : gate, output));
    }
    if (!sharedValues) return sum;
    const share = sharedGate ? sigmoid(product(values(sharedGate), x)[0] as number) : 1;
    return plus(sum, times(share, applyMlp(sharedValues, x).output));
  });
  return { routerLogits, choices, every, added };
}

type MlpValues = { readonly activation: ActivationSpec } & {
  readonly [part in (typeof mlpParts)[number]]?: Float32Array;
};

function mlpValues(spec: MlpSpec, values: Values): MlpValues {
  const parts = mlpParts.map((part) => [part, spec[part] && values(spec[part])]);
  return { ...Object.fromEntries(parts), activation: spec.activation };
}

function applyMlp({ activation, gate, up, down, ...biases }: MlpValues, x: Vector) {
  const ups = product(up as Float32Array, x, biases.upBias);
  const gates = gate ? product(gate, x, biases.gateBias) : ups;
  const units = ups.map((u, i) => activate(activation, gates[i] as number, u));
  return { units, output: product(down as Float32Array, units, biases.downBias) };
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

function slotWeights(spec: MoeSpec, plan: LayerPlan | undefined, values: Values): MlpValues[] {
  if (!plan) return spec.experts.map((expert) => mlpValues(expert, values));
  const { activation } = spec.experts[0] as MlpSpec;
  return plan.experts.map((_, slot) => {
    const parts = mlpParts.map((part) => [part, slotValues(spec, plan, slot, part, values)]);
    return { ...Object.fromEntries(parts), activation };
  });
}

/**
 * Tokens that skip nothing: of each run of several tokens, the share with the largest importance (`SkipRule.spare`), which
 * is the attention received times the L1 norm of the input.
 */
function sparedBy(
  rule: SkipRule | undefined,
  received: Vector,
  input: readonly Vector[],
  { lengthAt }: SlowWeights,
): boolean[] {
  const importance = received.map((share, t) => share * total((input[t] as Vector).map(Math.abs)));
  return received.map((_, t) => {
    const run = range(0, received.length).filter((other) => lengthAt(other) === lengthAt(t));
    if (run.length === 1) return false;
    const ahead = run.filter((other) => {
      const lead = (importance[other] as number) - (importance[t] as number);
      return lead > 0 || (lead === 0 && other < t);
    });
    return ahead.length < Math.ceil((rule?.spare ?? 0) * run.length);
  });
}
