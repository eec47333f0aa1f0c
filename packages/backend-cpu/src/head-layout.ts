import type { AttentionSpec, DecoderLayer } from "@coppice/core";
import { type AttentionShape, attentionShape } from "@coppice/onnx";

/** ONNX Runtime's attention operator wants head sizes and rotating dimensions that are multiples of this. */
const step = 16;

/**
 * Where the dimensions of a head lie in the arrays that the attention operator sees. Sizes that it does not take are
 * filled up with zeros, which change neither a product of query and key nor a sum of values.
 */
export interface HeadLayout {
  /** Dimensions of a head with those filled in. */
  readonly size: number;
  /** Rotating dimensions with those filled in; they turn by zero. */
  readonly rotary: number;
  /** Place of each dimension; absent when nothing is filled in. */
  readonly places?: Int32Array;
}

export function headLayout({ headDim, rotary: { dimensions } }: AttentionSpec): HeadLayout {
  const rotary = Math.ceil(dimensions / step) * step;
  const size = Math.ceil((headDim - dimensions + rotary) / step) * step;
  if (size === headDim && rotary === dimensions) return { size, rotary };
  const half = dimensions / 2;
  // The rotation pairs dimension i with i + half, so both halves are filled up.
  const places = Int32Array.from({ length: headDim }, (_, i) => {
    if (i < half) return i;
    return i < dimensions ? rotary / 2 + i - half : rotary + i - dimensions;
  });
  return { size, rotary, places };
}

/** The shape of a layer's attention with its heads laid out. */
export function paddedShape(layer: DecoderLayer, hidden: number, layout: HeadLayout): AttentionShape {
  const shape = attentionShape(layer, hidden);
  if (!layout.places) return shape;
  // The mean over a padded head is that much smaller; `padNorm` makes up for the rest.
  const share = shape.headDim / layout.size;
  return {
    ...shape,
    headDim: layout.size,
    rotaryDimensions: layout.rotary,
    ...(shape.queryEpsilon !== undefined && { queryEpsilon: shape.queryEpsilon * share }),
    ...(shape.keyEpsilon !== undefined && { keyEpsilon: shape.keyEpsilon * share }),
  };
}

/**
 * Fills up the heads along one axis.
 * @param values [any number of heads, headDim, inner]
 * @returns [heads, layout.size, inner]
 */
export function padHeads(values: Float32Array, { places, size }: HeadLayout, inner: number): Float32Array {
  if (!places) return values;
  const headDim = places.length;
  const count = values.length / (headDim * inner);
  const padded = new Float32Array(count * size * inner);
  for (let head = 0; head < count; head++) {
    for (let i = 0; i < headDim; i++) {
      const from = (head * headDim + i) * inner;
      padded.set(values.subarray(from, from + inner), (head * size + (places[i] as number)) * inner);
    }
  }
  return padded;
}

/** Weights of a norm over each head, [headDim], for heads that are filled up. */
export function padNorm(values: Float32Array, layout: HeadLayout): Float32Array {
  if (!layout.places) return values;
  const factor = Math.sqrt(values.length / layout.size);
  return padHeads(
    values.map((value) => value * factor),
    layout,
    1,
  );
}
