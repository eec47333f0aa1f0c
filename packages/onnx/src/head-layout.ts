import type {
  AttentionSpec,
  DecoderLayer,
  GroupedQueryAttentionSpec,
  LatentAttentionSpec,
} from "@coppice/core";
import { type AttentionShape, attentionShape, type GroupedQueryShape } from "./attention-shape.js";

/** Where ONNX Runtime's attention operator rotates, head sizes and rotating dimensions are multiples of this. */
const step = 16;

/**
 * Where the dimensions of a head lie in the arrays that the attention graph sees: every dimension with the one that
 * it rotates with half of the rotating ones away, and where the operator itself rotates filled up with zeros to sizes
 * that it takes. Neither changes a product of query and key or a sum of values.
 */
export interface HeadLayout {
  /** Dimensions of a head with those filled in. */
  readonly size: number;
  /** Rotating dimensions with those filled in; they turn by zero. */
  readonly rotary: number;
  /** Place of each dimension; absent when every one stays where it is. */
  readonly places?: Int32Array;
}

/** The layout of the heads of queries, keys and values, of which norms see as many dimensions as before. */
export function headLayout(attention: GroupedQueryAttentionSpec, shape: GroupedQueryShape): HeadLayout {
  const { headDim, rotary } = attention;
  const dimensions = rotary?.dimensions ?? 0;
  const interleaved = rotary?.interleaved ?? false;
  if (shape.rotation === "rows") return layout(headDim, headDim, 0, dimensions, dimensions, interleaved);
  const padded = Math.ceil(dimensions / step) * step;
  const size = Math.ceil((headDim - dimensions + padded) / step) * step;
  return layout(headDim, size, 0, dimensions, padded, interleaved);
}

/** The layout of the query heads of latent attention, and of the outputs of its down-projection to keys and values. */
export function latentLayouts({ nopeDim, rank, rotary }: LatentAttentionSpec): {
  readonly query: HeadLayout;
  readonly kvDown: HeadLayout;
} {
  const { dimensions, interleaved } = rotary;
  const behind = (plain: number) =>
    layout(plain + dimensions, plain + dimensions, plain, dimensions, dimensions, interleaved);
  return { query: behind(nopeDim), kvDown: behind(rank) };
}

function layout(
  headDim: number,
  size: number,
  first: number,
  dimensions: number,
  rotary: number,
  interleaved: boolean,
): HeadLayout {
  if (size === headDim && rotary === dimensions && !interleaved) return { size, rotary };
  const half = dimensions / 2;
  const places = Int32Array.from({ length: headDim }, (_, at) => {
    const i = at - first;
    if (i < 0) return at;
    if (i >= dimensions) return at - dimensions + rotary;
    // The graph pairs dimension i with i + rotary / 2, so both halves are filled up.
    const pair = interleaved ? i >> 1 : i % half;
    const second = interleaved ? i % 2 === 1 : i >= half;
    return first + pair + (second ? rotary / 2 : 0);
  });
  return { size, rotary, places };
}

/** The shape of a layer's attention with its heads laid out. */
export function paddedShape(layer: DecoderLayer, hidden: number): AttentionShape {
  const shape = attentionShape(layer, hidden);
  const { attention } = layer;
  if (shape.kind !== "gqa" || attention.kind !== "gqa" || shape.rotation === "rows") return shape;
  const { size, rotary } = headLayout(attention, shape);
  if (size === shape.headDim) return shape;
  // The mean over a padded head is that much smaller; `layNorm` makes up for the rest.
  const share = shape.headDim / size;
  const shrunk = <T extends { readonly epsilon: number }>(norm: T) => ({
    ...norm,
    epsilon: norm.epsilon * share,
  });
  return {
    ...shape,
    headDim: size,
    rotaryDimensions: rotary,
    ...(shape.queryNorm && { queryNorm: shrunk(shape.queryNorm) }),
    ...(shape.keyNorm && { keyNorm: shrunk(shape.keyNorm) }),
  };
}

/** Dimensions whose sines and cosines the graph of a layer takes. */
export function rotaryDimensions(attention: AttentionSpec, shape: AttentionShape): number {
  return attention.kind === "gqa" && shape.kind === "gqa"
    ? headLayout(attention, shape).rotary
    : shape.rotaryDimensions;
}

/**
 * Lays out heads along one axis.
 * @param values [any number of heads, headDim, inner]
 * @returns [heads, layout.size, inner]
 */
export function layHeads(values: Float32Array, { places, size }: HeadLayout, inner: number): Float32Array {
  if (!places) return values;
  const headDim = places.length;
  const count = values.length / (headDim * inner);
  const laid = new Float32Array(count * size * inner);
  for (let head = 0; head < count; head++) {
    for (let i = 0; i < headDim; i++) {
      const from = (head * headDim + i) * inner;
      laid.set(values.subarray(from, from + inner), (head * size + (places[i] as number)) * inner);
    }
  }
  return laid;
}

/** Weights of a norm over each head, [headDim], or over all of a projection, for heads that are laid out. */
export function layNorm(values: Float32Array, headLayout: HeadLayout): Float32Array {
  const { places, size } = headLayout;
  if (!places) return values;
  const factor = Math.sqrt(places.length / size);
  return layHeads(factor === 1 ? values : values.map((value) => value * factor), headLayout, 1);
}
