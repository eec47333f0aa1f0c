import type { AttentionSpec } from "@coppice/core";
import type { ReferenceCache } from "./kv-cache.js";
import { dot, linear } from "./linear.js";
import { rmsNorm } from "./norm.js";
import type { Rotary } from "./rotary.js";
import type { Scratch } from "./scratch.js";
import type { LayerWeights } from "./weights.js";

export interface AttentionBatch {
  readonly tokens: number;
  readonly starts: Int32Array;
  readonly cache: ReferenceCache | undefined;
  readonly layer: number;
}

/** Grouped-query attention of the normed input x [T, hidden] into y [T, hidden]; extends the cache if there is one. */
export function attend(
  spec: AttentionSpec,
  weights: LayerWeights,
  rotary: Rotary,
  batch: AttentionBatch,
  x: Float32Array,
  y: Float32Array,
  scratch: Scratch,
): void {
  const { heads, kvHeads, headDim } = spec;
  const { tokens, starts, cache, layer } = batch;
  const querySize = heads * headDim;
  const keySize = kvHeads * headDim;
  const queries = scratch.take("queries", tokens * querySize);
  const keys = scratch.take("keys", tokens * keySize);
  const values = scratch.take("values", tokens * keySize);
  const mixed = scratch.take("mixed", tokens * querySize);
  const { query, key, value, output } = weights;
  linear(x, tokens, query.weight, query.inputs, querySize, queries, query.bias);
  linear(x, tokens, key.weight, key.inputs, keySize, keys, key.bias);
  linear(x, tokens, value.weight, value.inputs, keySize, values, value.bias);
  if (weights.queryNorm) rmsNorm(queries, tokens * heads, headDim, weights.queryNorm, queries);
  if (weights.keyNorm) rmsNorm(keys, tokens * kvHeads, headDim, weights.keyNorm, keys);

  for (let s = 0; s + 1 < starts.length; s++) {
    const start = starts[s] as number;
    const length = (starts[s + 1] as number) - start;
    const past = cache?.lengths[s] ?? 0;
    rotary.reserve(past + length);
    for (let i = 0; i < length; i++) {
      rotary.apply(queries, (start + i) * querySize, heads, headDim, past + i);
      rotary.apply(keys, (start + i) * keySize, kvHeads, headDim, past + i);
    }
    const from = start * keySize;
    const to = from + length * keySize;
    let sequence = { keys: keys.subarray(from, to), values: values.subarray(from, to) };
    if (cache) {
      const store = cache.reserve(layer, s, past + length, keySize);
      store.keys.set(sequence.keys, past * keySize);
      store.values.set(sequence.values, past * keySize);
      sequence = store;
    }
    const scores = new Float64Array(past + length);
    for (let i = 0; i < length; i++) {
      mixPosition(spec, queries, (start + i) * querySize, sequence, past + i, scores, mixed);
    }
  }
  linear(mixed, tokens, output.weight, output.inputs, output.outputs, y, output.bias);
}

/** Attention of one position over the keys it sees, for all heads; queries and result lie at `at`. */
function mixPosition(
  { heads, kvHeads, headDim, scale, slidingWindow }: AttentionSpec,
  queries: Float32Array,
  at: number,
  { keys, values }: { keys: Float32Array; values: Float32Array },
  position: number,
  scores: Float64Array,
  mixed: Float32Array,
): void {
  const keySize = kvHeads * headDim;
  const group = heads / kvHeads;
  const first = slidingWindow === undefined ? 0 : Math.max(0, position - slidingWindow + 1);
  for (let head = 0; head < heads; head++) {
    const query = at + head * headDim;
    const offset = Math.floor(head / group) * headDim;
    let max = Number.NEGATIVE_INFINITY;
    for (let k = first; k <= position; k++) {
      const score = scale * dot(queries, query, keys, k * keySize + offset, headDim);
      scores[k] = score;
      if (score > max) max = score;
    }
    let sum = 0;
    for (let k = first; k <= position; k++) {
      const weight = Math.exp((scores[k] as number) - max);
      scores[k] = weight;
      sum += weight;
    }
    // Dimension by dimension, so that each sum stays in a float64 register.
    for (let i = 0; i < headDim; i++) {
      let value = 0;
      for (let k = first; k <= position; k++) {
        value += (scores[k] as number) * (values[k * keySize + offset + i] as number);
      }
      mixed[query + i] = value / sum;
    }
  }
}
