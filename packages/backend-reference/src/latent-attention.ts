import type { LatentAttentionSpec } from "@coppice/core";
import { type AttentionBatch, eachSequence, type Projected } from "./attention.js";
import { linear } from "./linear.js";
import { normalize } from "./norm.js";
import type { Rotary } from "./rotary.js";
import type { Scratch } from "./scratch.js";
import type { LatentWeights, Linear } from "./weights.js";

/**
 * Queries, keys and values of multi-head latent attention, unfolded: every head has its own plain key part and the
 * rotating part that all heads share. A cache holds them unfolded too, larger than a latent one, so that a token gives
 * the same bits with a cache and without.
 */
export function projectLatent(
  spec: LatentAttentionSpec,
  weights: LatentWeights,
  rotary: Rotary,
  batch: AttentionBatch,
  x: Float32Array,
  scratch: Scratch,
): Projected {
  const { heads, nopeDim, valueDim, rank } = spec;
  const { tokens } = batch;
  const rotaryDim = spec.rotary.dimensions;
  const keyDim = nopeDim + rotaryDim;
  const project = (name: string, { weight, bias, inputs, outputs }: Linear, input: Float32Array) => {
    const out = scratch.take(name, tokens * outputs);
    linear(input, tokens, weight, inputs, outputs, out, bias);
    return out;
  };
  let low = x;
  if (weights.queryDown) {
    low = project("queryDown", weights.queryDown, x);
    if (weights.queryNorm) normalize(low, tokens, weights.query.inputs, weights.queryNorm, low);
  }
  const queries = project("queries", weights.query, low);

  const down = project("kvDown", weights.kvDown, x);
  const latents = scratch.take("latents", tokens * rank);
  for (let token = 0; token < tokens; token++) {
    const at = token * (rank + rotaryDim);
    latents.set(down.subarray(at, at + rank), token * rank);
  }
  normalize(latents, tokens, rank, weights.kvNorm, latents);
  const unfolded = project("kvUp", weights.kvUp, latents);

  eachSequence(batch, (start, length, past) => {
    const [queryStride, downStride] = [heads * keyDim, rank + rotaryDim];
    rotary.apply(
      queries,
      { at: start * queryStride, tokens: length, stride: queryStride, past },
      { heads, headDim: keyDim, offset: nopeDim },
    );
    rotary.apply(
      down,
      { at: start * downStride, tokens: length, stride: downStride, past },
      { heads: 1, headDim: downStride, offset: rank },
    );
  });
  const keys = scratch.take("keys", tokens * heads * keyDim);
  const values = scratch.take("values", tokens * heads * valueDim);
  for (let token = 0; token < tokens; token++) {
    const turned = down.subarray(
      (token + 1) * (rank + rotaryDim) - rotaryDim,
      (token + 1) * (rank + rotaryDim),
    );
    for (let head = 0; head < heads; head++) {
      const row = token * heads + head;
      const from = row * (nopeDim + valueDim);
      keys.set(unfolded.subarray(from, from + nopeDim), row * keyDim);
      keys.set(turned, row * keyDim + nopeDim);
      values.set(unfolded.subarray(from + nopeDim, from + nopeDim + valueDim), row * valueDim);
    }
  }
  return { queries, keys, values, kvHeads: heads, keyDim, valueDim };
}
