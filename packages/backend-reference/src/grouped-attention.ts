import type { GroupedQueryAttentionSpec } from "@coppice/core";
import { type AttentionBatch, eachSequence, type Projected } from "./attention.js";
import { linear } from "./linear.js";
import { normalize } from "./norm.js";
import type { Rotary } from "./rotary.js";
import type { Scratch } from "./scratch.js";
import type { GroupedQueryWeights, Linear, Norm } from "./weights.js";

/** Queries, keys and values of grouped-query attention, in the order that `GroupedQueryAttentionSpec` defines. */
export function projectGrouped(
  spec: GroupedQueryAttentionSpec,
  weights: GroupedQueryWeights,
  rotary: Rotary | undefined,
  batch: AttentionBatch,
  x: Float32Array,
  scratch: Scratch,
): Projected {
  const { heads, kvHeads, headDim } = spec;
  const { tokens } = batch;
  const project = (name: string, { weight, bias, inputs, outputs }: Linear): Float32Array => {
    const out = scratch.take(name, tokens * outputs);
    linear(x, tokens, weight, inputs, outputs, out, bias);
    return out;
  };
  const turned = (name: string, projection: Linear, norm: Norm | undefined, over: string, count: number) => {
    const out = project(name, projection);
    const size = over === "head" ? headDim : count * headDim;
    const normed = () => norm && normalize(out, out.length / size, size, norm, out);
    if (!spec.normAfterRotary) normed();
    limit(out, spec.clip);
    if (rotary) {
      const stride = count * headDim;
      eachSequence(batch, (start, length, past) => {
        rotary.apply(
          out,
          { at: start * stride, tokens: length, stride, past },
          { heads: count, headDim, offset: 0 },
        );
      });
    }
    if (spec.normAfterRotary) normed();
    return out;
  };
  const queries = turned("queries", weights.query, weights.queryNorm, spec.queryNorm?.over ?? "head", heads);
  const keys = turned("keys", weights.key, weights.keyNorm, spec.keyNorm?.over ?? "head", kvHeads);
  const values = project("values", weights.value);
  limit(values, spec.clip);
  if (spec.temperature) warm(queries, heads * headDim, spec.temperature, batch);
  return { queries, keys, values, kvHeads, keyDim: headDim, valueDim: headDim };
}

function limit(values: Float32Array, clip: number | undefined): void {
  if (clip === undefined) return;
  for (let i = 0; i < values.length; i++) values[i] = Math.min(clip, Math.max(-clip, values[i] as number));
}

/** Multiplies queries by the temperature of their position. */
function warm(
  queries: Float32Array,
  size: number,
  { floor, scale }: NonNullable<GroupedQueryAttentionSpec["temperature"]>,
  batch: AttentionBatch,
): void {
  eachSequence(batch, (start, length, past) => {
    for (let i = 0; i < length; i++) {
      const factor = 1 + scale * Math.log1p(Math.floor((past + i + 1) / floor));
      for (let at = (start + i) * size; at < (start + i + 1) * size; at++)
        queries[at] = (queries[at] as number) * factor;
    }
  });
}
