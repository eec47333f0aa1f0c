import type { GroupedQueryAttentionSpec, HeadNormSpec, LatentAttentionSpec, RotarySpec } from "@coppice/core";
import type { RandomTensors } from "./random-model.js";
import type { RandomLatent, RandomModelShape } from "./random-shape.js";

/** Attention of one layer of a random model. */
export function randomAttention(
  shape: RandomModelShape,
  make: RandomTensors,
  layer: number,
  hidden: number,
): GroupedQueryAttentionSpec | LatentAttentionSpec {
  return shape.latent
    ? latentAttention(shape, shape.latent, make, layer, hidden)
    : groupedAttention(shape, make, layer, hidden);
}

function rotaryOf({ theta = 10_000, interleaved = false, scaling }: RandomModelShape, dimensions: number) {
  return { theta, dimensions, interleaved, ...(scaling && { scaling }) } satisfies RotarySpec;
}

function windowOf({ slidingWindow, slidingLayers }: RandomModelShape, layer: number) {
  const slides = slidingWindow !== undefined && (slidingLayers?.includes(layer) ?? true);
  return slides && { slidingWindow };
}

function groupedAttention(
  shape: RandomModelShape,
  make: RandomTensors,
  layer: number,
  hidden: number,
): GroupedQueryAttentionSpec {
  const { heads = 4, kvHeads = 2, headDim = 8, bias, qkNorm } = shape;
  const at = (name: string) => `layers.${layer}.${name}`;
  const headNorm = (name: string, count: number): HeadNormSpec => {
    if (qkNorm === "weightless") return { kind: "rms", epsilon: 1e-6, over: "head" };
    if (qkNorm === "projection") return { ...make.norm(name, count * headDim), over: "projection" };
    return { ...make.norm(name, headDim), over: "head" };
  };
  const rotates = !shape.plainLayers?.includes(layer);
  return {
    kind: "gqa",
    heads,
    kvHeads,
    headDim,
    scale: shape.attentionScale ?? headDim ** -0.5,
    query: make.linear(at("query"), heads * headDim, hidden, bias),
    key: make.linear(at("key"), kvHeads * headDim, hidden, bias),
    value: make.linear(at("value"), kvHeads * headDim, hidden, bias),
    output: make.linear(at("output"), hidden, heads * headDim, bias),
    ...(qkNorm && {
      queryNorm: headNorm(at("queryNorm"), heads),
      keyNorm: headNorm(at("keyNorm"), kvHeads),
    }),
    ...(shape.normAfterRotary && { normAfterRotary: true }),
    ...(shape.clip !== undefined && { clip: shape.clip }),
    ...(rotates && { rotary: rotaryOf(shape, shape.rotaryDimensions ?? headDim) }),
    ...(shape.sinks && { sinks: make.tensor(at("sinks"), [heads], (rng) => rng.normal()) }),
    ...windowOf(shape, layer),
    ...(shape.chunk !== undefined && rotates && { chunk: shape.chunk }),
    ...(shape.temperature && !rotates && { temperature: shape.temperature }),
  };
}

function latentAttention(
  shape: RandomModelShape,
  { rank, queryRank, nopeDim, rotaryDim, valueDim }: RandomLatent,
  make: RandomTensors,
  layer: number,
  hidden: number,
): LatentAttentionSpec {
  const { heads = 4, bias } = shape;
  const at = (name: string) => `layers.${layer}.${name}`;
  const size = nopeDim + rotaryDim;
  return {
    kind: "mla",
    heads,
    scale: shape.attentionScale ?? size ** -0.5,
    nopeDim,
    valueDim,
    rank,
    ...(queryRank !== undefined && {
      queryDown: make.linear(at("queryDown"), queryRank, hidden, bias),
      queryNorm: make.norm(at("queryNorm"), queryRank),
    }),
    query: make.linear(at("query"), heads * size, queryRank ?? hidden, bias && queryRank === undefined),
    kvDown: make.linear(at("kvDown"), rank + rotaryDim, hidden, bias),
    kvNorm: make.norm(at("kvNorm"), rank),
    kvUp: make.linear(at("kvUp"), heads * (nopeDim + valueDim), rank, false),
    output: make.linear(at("output"), hidden, heads * valueDim, bias),
    rotary: rotaryOf(shape, rotaryDim),
    ...windowOf(shape, layer),
  };
}
