import {
  type AttentionSpec,
  type GatedMlpSpec,
  type LayerPlan,
  type MoeSpec,
  type NormSpec,
  type Plan,
  roundToDtype,
  type TensorRef,
} from "@coppice/core";
import type { MemoryModel } from "./memory-model.js";

type Vector = number[];

/** One chosen slot of one token. */
export interface SlowChoice {
  readonly slot: number;
  readonly gate: number;
  /** Unweighted expert output f(x), [hidden]. */
  readonly output: readonly number[];
}

/** What one MoE layer did, token by token. */
export interface SlowLayer {
  readonly layer: number;
  /** [tokens][hidden], input of the MoE block after its norm. */
  readonly input: readonly (readonly number[])[];
  /** [tokens][experts], router logits of all original experts. */
  readonly routerLogits: readonly (readonly number[])[];
  /** [tokens][k], by descending gate weight. */
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
 * code with any backend, which makes it the yardstick of plans on every kind of model.
 */
export function slowForward(source: MemoryModel, ids: readonly number[], plan?: Plan): SlowResult {
  const { model } = source;
  const values = (ref: TensorRef) => source.tensors.get(ref.name) as Float32Array;
  const plans = new Map(plan?.layers.map((layer) => [layer.layer, layer]));
  const multiply = (ref: TensorRef, x: Vector, bias?: TensorRef): Vector =>
    product(values(ref), x, bias && values(bias));
  const norm = ({ weight, epsilon }: NormSpec, x: Vector): Vector => {
    const mean = x.reduce((sum, value) => sum + value * value, 0) / x.length;
    return x.map((value, i) => (value / Math.sqrt(mean + epsilon)) * (values(weight)[i] as number));
  };

  const attention = (spec: AttentionSpec, xs: Vector[]): Vector[] => {
    const split = (x: Vector, headNorm: NormSpec | undefined, position: number | undefined) =>
      chunks(x, spec.headDim).map((head) => {
        const normed = headNorm ? norm(headNorm, head) : head;
        return position === undefined ? normed : rotate(normed, position, spec);
      });
    const queries = xs.map((x, t) =>
      split(multiply(spec.query.weight, x, spec.query.bias), spec.queryNorm, t),
    );
    const keys = xs.map((x, t) => split(multiply(spec.key.weight, x, spec.key.bias), spec.keyNorm, t));
    const mixes = xs.map((x) => split(multiply(spec.value.weight, x, spec.value.bias), undefined, undefined));
    return xs.map((_, t) => {
      const first = Math.max(0, t + 1 - (spec.slidingWindow ?? t + 1));
      const seen = range(first, t + 1);
      const heads = range(0, spec.heads).flatMap((head) => {
        const shared = Math.floor((head * spec.kvHeads) / spec.heads);
        const query = queries[t]?.[head] as Vector;
        const shares = softmax(seen.map((s) => spec.scale * inner(query, keys[s]?.[shared] as Vector)));
        return query.map((_, i) =>
          seen.reduce((sum, s, k) => sum + (shares[k] as number) * (mixes[s]?.[shared]?.[i] as number), 0),
        );
      });
      return multiply(spec.output.weight, heads, spec.output.bias);
    });
  };

  const mlp = (weights: ExpertWeights, x: Vector): Vector => {
    const gate = product(weights.gate, x);
    const up = product(weights.up, x);
    return product(
      weights.down,
      gate.map((g, i) => (g / (1 + Math.exp(-g))) * (up[i] as number)),
    );
  };
  const weightsOf = (spec: GatedMlpSpec): ExpertWeights => ({
    gate: values(spec.gate),
    up: values(spec.up),
    down: values(spec.down),
  });

  const layers: SlowLayer[] = [];
  const hidden: Vector[][] = [];
  let xs = ids.map((id) => chunk(values(model.embedding), id, model.hiddenSize));
  for (const layer of model.layers) {
    hidden.push(xs);
    const attended = attention(
      layer.attention,
      xs.map((x) => norm(layer.attentionNorm, x)),
    );
    xs = xs.map((x, t) => plus(x, attended[t] as Vector));
    const input = xs.map((x) => norm(layer.feedForwardNorm, x));
    const { feedForward } = layer;
    if (feedForward.kind === "dense") {
      xs = xs.map((x, t) => plus(x, mlp(weightsOf(feedForward.mlp), input[t] as Vector)));
      continue;
    }
    const layerPlan = plans.get(layer.index);
    const experts = feedForward.experts.map(weightsOf);
    const slots = slotWeights(feedForward, experts, layerPlan);
    const routerLogits = input.map((x) => multiply(feedForward.router.weight, x));
    const choices = input.map((x, t) =>
      chooseSlots(routerLogits[t] as Vector, feedForward, layerPlan).map(({ slot, gate }) => ({
        slot,
        gate,
        output: mlp(slots[slot] as ExpertWeights, x),
      })),
    );
    layers.push({ layer: layer.index, input, routerLogits, choices });
    xs = xs.map((x, t) =>
      (choices[t] as SlowChoice[]).reduce(
        (sum, { gate, output }) =>
          plus(
            sum,
            output.map((v) => gate * v),
          ),
        x,
      ),
    );
  }
  hidden.push(xs);
  return { logits: xs.map((x) => multiply(model.head, norm(model.finalNorm, x))), layers, hidden };
}

interface ExpertWeights {
  readonly gate: ArrayLike<number>;
  readonly up: ArrayLike<number>;
  readonly down: ArrayLike<number>;
}

/** Softmax over all experts, dropped ones at -1e9; or p' = map · softmax of all. Then top-k, then the division. */
function chooseSlots(logits: Vector, { router, experts }: MoeSpec, plan: LayerPlan | undefined) {
  const kept = plan?.experts ?? range(0, experts.length);
  const map = plan?.routerMap;
  const masked = logits.map((z, expert) => (map || kept.includes(expert) ? z : -1e9));
  const all = softmax(masked);
  const mass = kept.map((expert, slot) => (map ? inner(map[slot] as Vector, all) : (all[expert] as number)));
  const order = range(0, kept.length).sort((a, b) => (mass[b] as number) - (mass[a] as number) || a - b);
  const chosen = order.slice(0, plan?.topK ?? router.topK);
  const total = chosen.reduce((sum, slot) => sum + (mass[slot] as number), 0);
  return chosen.map((slot) => ({
    slot,
    gate: (mass[slot] as number) / (router.normalize || map ? total : 1),
  }));
}

/** Σ_j merge[i][j] · θ_j, rounded to what the checkpoint would store. */
function slotWeights(spec: MoeSpec, experts: ExpertWeights[], plan: LayerPlan | undefined): ExpertWeights[] {
  if (!plan) return experts;
  if (!plan.merge) return plan.experts.map((expert) => experts[expert] as ExpertWeights);
  return plan.merge.map((row) => {
    const part = (name: "gate" | "up" | "down") => {
      const sums = Float32Array.from((experts[0] as ExpertWeights)[name], (_, i) =>
        row.reduce((sum, factor, j) => sum + factor * (experts[j]?.[name][i] as number), 0),
      );
      roundToDtype(sums, (spec.experts[0] as GatedMlpSpec)[name].dtype);
      return sums;
    };
    return { gate: part("gate"), up: part("up"), down: part("down") };
  });
}

/** Half-split rotation of the first `dimensions` values of a head. */
function rotate(head: Vector, position: number, { rotary }: AttentionSpec): Vector {
  const half = rotary.dimensions / 2;
  return head.map((value, i) => {
    if (i >= rotary.dimensions) return value;
    const angle = position / rotary.theta ** ((2 * (i % half)) / rotary.dimensions);
    const partner = i < half ? -(head[i + half] as number) : (head[i - half] as number);
    return value * Math.cos(angle) + partner * Math.sin(angle);
  });
}

function product(matrix: ArrayLike<number>, x: Vector, bias?: ArrayLike<number>): Vector {
  return range(0, matrix.length / x.length).map((row) => {
    let sum = bias?.[row] ?? 0;
    for (let i = 0; i < x.length; i++) sum += (matrix[row * x.length + i] as number) * (x[i] as number);
    return sum;
  });
}

function softmax(x: readonly number[]): Vector {
  const max = Math.max(...x);
  const parts = x.map((value) => Math.exp(value - max));
  const sum = parts.reduce((a, b) => a + b, 0);
  return parts.map((part) => part / sum);
}

function inner(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, i) => sum + value * (b[i] as number), 0);
}

function plus(a: Vector, b: Vector): Vector {
  return a.map((value, i) => value + (b[i] as number));
}

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i);
}

function chunks(x: Vector, size: number): Vector[] {
  return range(0, x.length / size).map((i) => x.slice(i * size, (i + 1) * size));
}

function chunk(values: Float32Array, row: number, size: number): Vector {
  return Array.from(values.subarray(row * size, (row + 1) * size));
}
