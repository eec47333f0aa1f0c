import type { AttentionSpec, CheckedAttention } from "@coppice/core";
import { projectGrouped } from "./grouped-attention.js";
import type { ReferenceCache } from "./kv-cache.js";
import { projectLatent } from "./latent-attention.js";
import { dot, linear } from "./linear.js";
import type { Rotary } from "./rotary.js";
import type { Scratch } from "./scratch.js";
import { type SeenKeys, type Stretches, seenKeys } from "./seen-keys.js";
import type { GroupedQueryWeights, LatentWeights } from "./weights.js";

export interface AttentionBatch {
  readonly tokens: number;
  readonly starts: Int32Array;
  readonly cache: ReferenceCache | undefined;
  readonly layer: number;
  /** What this layer's attention is limited to, beside what the model says; absent: nothing. */
  readonly attention?: CheckedAttention | undefined;
}

/** Queries, keys and values of all tokens, positions already turned into them. */
export interface Projected {
  /** [T, heads * keyDim] */
  readonly queries: Float32Array;
  /** [T, kvHeads * keyDim] */
  readonly keys: Float32Array;
  /** [T, kvHeads * valueDim] */
  readonly values: Float32Array;
  readonly kvHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
}

/** Calls `visit` for every sequence with its first row, its tokens in this run and those that came before. */
export function eachSequence(
  { starts, cache }: Pick<AttentionBatch, "starts" | "cache">,
  visit: (start: number, tokens: number, past: number, sequence: number) => void,
): void {
  for (let s = 0; s + 1 < starts.length; s++) {
    const start = starts[s] as number;
    visit(start, (starts[s + 1] as number) - start, cache?.lengths[s] ?? 0, s);
  }
}

/**
 * Attention of the normed input x [T, hidden] into y [T, hidden]; extends the cache if there is one.
 * @param received [T], if wanted: grows by the attention that each token gets from itself and later tokens of this run,
 * summed over heads
 */
export function attend(
  spec: Exclude<AttentionSpec, { kind: "other" }>,
  weights: GroupedQueryWeights | LatentWeights,
  rotary: Rotary | undefined,
  batch: AttentionBatch,
  x: Float32Array,
  y: Float32Array,
  scratch: Scratch,
  received?: Float64Array,
): void {
  const { tokens, cache, layer } = batch;
  const grouped = spec.kind === "gqa" ? (weights as GroupedQueryWeights) : undefined;
  const projected =
    spec.kind === "gqa"
      ? projectGrouped(spec, weights as GroupedQueryWeights, rotary, batch, x, scratch)
      : projectLatent(spec, weights as LatentWeights, rotary as Rotary, batch, x, scratch);
  const keySize = projected.kvHeads * projected.keyDim;
  const valueSize = projected.kvHeads * projected.valueDim;
  const querySize = spec.heads * projected.keyDim;
  const mixedSize = spec.heads * projected.valueDim;
  const mixed = scratch.take("mixed", tokens * mixedSize);
  eachSequence(batch, (start, length, past, sequence) => {
    let keys = projected.keys.subarray(start * keySize, (start + length) * keySize);
    let values = projected.values.subarray(start * valueSize, (start + length) * valueSize);
    if (cache) {
      const store = cache.reserve(layer, sequence, past + length, keySize, valueSize);
      store.keys.set(keys, past * keySize);
      store.values.set(values, past * valueSize);
      ({ keys, values } = store);
    }
    const queries = projected.queries.subarray(start * querySize, (start + length) * querySize);
    const shown = { ...projected, queries, keys, values };
    const seen = seenKeys(spec, batch, { sequence, past, tokens: length }, shown);
    const scores = new Float64Array(past + length);
    const own = mixed.subarray(start * mixedSize, (start + length) * mixedSize);
    const sums = received && { past, sums: received.subarray(start, start + length) };
    for (let i = 0; i < length; i++) {
      mixPosition(spec, shown, { row: i, position: past + i, seen }, grouped?.sinks, scores, own, sums);
    }
  });
  const { output } = weights;
  linear(mixed, tokens, output.weight, output.inputs, output.outputs, y, output.bias);
}

interface Received {
  /** Tokens of the sequence that came before this run. */
  readonly past: number;
  /** One per token of the sequence in this run. */
  readonly sums: Float64Array;
}

/** Attention of one position over the keys it sees, for all heads; sums in float64. `row` counts from the sequence's first. */
function mixPosition(
  { heads, scale }: { readonly heads: number; readonly scale: number },
  { queries, keys, values, kvHeads, keyDim, valueDim }: Projected,
  { row, position, seen }: { row: number; position: number; seen: SeenKeys },
  sinks: Float32Array | undefined,
  scores: Float64Array,
  mixed: Float32Array,
  received: Received | undefined,
): void {
  const keySize = kvHeads * keyDim;
  const valueSize = kvHeads * valueDim;
  const group = heads / kvHeads;
  for (let head = 0; head < heads; head++) {
    const query = (row * heads + head) * keyDim;
    const shared = Math.floor(head / group);
    const sink = sinks ? (sinks[head] as number) : Number.NEGATIVE_INFINITY;
    const stretches = seen(head, position);
    let max = sink;
    for (const [from, to] of stretches) {
      for (let k = from; k < to; k++) {
        const score = scale * dot(queries, query, keys, k * keySize + shared * keyDim, keyDim);
        scores[k] = score;
        if (score > max) max = score;
      }
    }
    let sum = Math.exp(sink - max);
    for (const [from, to] of stretches) {
      for (let k = from; k < to; k++) {
        const weight = Math.exp((scores[k] as number) - max);
        scores[k] = weight;
        sum += weight;
      }
    }
    if (received) addShares(scores, stretches, sum, received);
    const out = (row * heads + head) * valueDim;
    // Dimension by dimension, so that each sum stays in a float64 register.
    for (let i = 0; i < valueDim; i++) {
      let value = 0;
      for (const [from, to] of stretches) {
        for (let k = from; k < to; k++) {
          value += (scores[k] as number) * (values[k * valueSize + shared * valueDim + i] as number);
        }
      }
      mixed[out + i] = value / sum;
    }
  }
}

function addShares(weights: Float64Array, stretches: Stretches, sum: number, { past, sums }: Received): void {
  for (const [from, to] of stretches) {
    for (let k = Math.max(from, past); k < to; k++) {
      sums[k - past] = (sums[k - past] as number) + (weights[k] as number) / sum;
    }
  }
}
