import {
  type GroupedQueryAttentionSpec,
  type HeadNormSpec,
  type LimitableLayer,
  type NormSpec,
  type RotaryFrequencies,
  rotaryFrequencies,
} from "@coppice/core";
import type { NormWeights, ProfileWeights, ProjectionWeights } from "./profile-weights.js";
import { rowProducts } from "./row-products.js";

/** What attention of one layer reads of one text, by KV head. */
export interface LayerHeads {
  /** [kvHeads][S, G, headDim], of the wanted positions, turned by them. */
  readonly queries: readonly Float32Array[];
  /** [kvHeads][tokens, headDim], turned by their positions. */
  readonly keys: readonly Float32Array[];
  /** [kvHeads][tokens, headDim] */
  readonly values: readonly Float32Array[];
}

/** Tokens whose projections are worked out together. */
const tokensAtOnce = 64;

/**
 * Queries, keys and values in the order of `GroupedQueryAttentionSpec`: projections of the layer's normed input, norms, clip,
 * rotation, temperature.
 * @param hidden [tokens, hidden], the layer's input
 * @param positions of the queries that are wanted, ascending, each once
 */
export function layerHeads(
  hidden: Float32Array,
  positions: Int32Array,
  { attention, attentionNorm }: LimitableLayer,
  weights: ProfileWeights,
): LayerHeads {
  const { heads, kvHeads, headDim, rotary, queryNorm, keyNorm, temperature } = attention;
  const size = weights.query.weight.length / (heads * headDim);
  const tokens = hidden.length / size;
  const x = new Float64Array(tokensAtOnce * size);
  const q = new Float64Array(tokensAtOnce * heads * headDim);
  const k = new Float64Array(tokensAtOnce * kvHeads * headDim);
  const v = k.slice();
  const turns = rotary && rotaryFrequencies(rotary, tokens);
  const empty = (rows: number, width: number) =>
    Array.from({ length: kvHeads }, () => new Float32Array(rows * width));
  const group = (heads / kvHeads) * headDim;
  const [queries, keys, values] = [
    empty(positions.length, group),
    empty(tokens, headDim),
    empty(tokens, headDim),
  ];
  const turned = (row: Float64Array, spec: HeadNormSpec | undefined, norm: NormWeights, at: number) => {
    if (!attention.normAfterRotary) headNorms(row, headDim, spec, norm);
    limit(row, attention.clip);
    if (turns) rotate(row, attention, turns, at);
    if (attention.normAfterRotary) headNorms(row, headDim, spec, norm);
  };
  let wanted = 0;
  for (let first = 0; first < tokens; first += tokensAtOnce) {
    const count = Math.min(tokensAtOnce, tokens - first);
    const rows = x.subarray(0, count * size);
    rows.set(hidden.subarray(first * size, (first + count) * size));
    for (let t = 0; t < count; t++)
      normalize(rows.subarray(t * size, (t + 1) * size), attentionNorm, weights.norm);
    project(weights.key, rows, size, k);
    project(weights.value, rows, size, v);
    for (let t = 0; t < count; t++) {
      const [from, to] = [t * kvHeads * headDim, (t + 1) * kvHeads * headDim];
      const [ownK, ownV] = [k.subarray(from, to), v.subarray(from, to)];
      turned(ownK, keyNorm, weights.keyNorm, first + t);
      scatter(ownK, keys, first + t);
      limit(ownV, attention.clip);
      scatter(ownV, values, first + t);
    }
    const chosen = Array.from(positions.subarray(wanted)).filter((t) => t < first + count);
    chosen.forEach((t, i) => {
      // Ascending, so that no row is overwritten before it has moved.
      rows.copyWithin(i * size, (t - first) * size, (t - first + 1) * size);
    });
    project(weights.query, rows.subarray(0, chosen.length * size), size, q);
    chosen.forEach((t, i) => {
      const own = q.subarray(i * heads * headDim, (i + 1) * heads * headDim);
      turned(own, queryNorm, weights.queryNorm, t);
      if (temperature) {
        const factor = 1 + temperature.scale * Math.log1p(Math.floor((t + 1) / temperature.floor));
        for (let j = 0; j < own.length; j++) own[j] = (own[j] as number) * factor;
      }
      scatter(own, queries, wanted + i);
    });
    wanted += chosen.length;
  }
  return { queries, keys, values };
}

/** One part of a token's values to the row of each KV head. */
function scatter(row: Float64Array, to: readonly Float32Array[], at: number): void {
  const width = row.length / to.length;
  to.forEach((own, head) => {
    own.set(row.subarray(head * width, (head + 1) * width), at * width);
  });
}

/** x Wᵀ + b of some tokens, x [tokens, size]. */
function project({ weight, bias }: ProjectionWeights, x: Float64Array, size: number, y: Float64Array): void {
  rowProducts(x, weight, size, y);
  if (!bias) return;
  const end = (x.length / size) * bias.length;
  for (let i = 0; i < end; i++) y[i] = (y[i] as number) + (bias[i % bias.length] as number);
}

function limit(row: Float64Array, clip: number | undefined): void {
  if (clip === undefined) return;
  for (let i = 0; i < row.length; i++) row[i] = Math.min(clip, Math.max(-clip, row[i] as number));
}

function headNorms(
  row: Float64Array,
  headDim: number,
  spec: HeadNormSpec | undefined,
  weights: NormWeights,
): void {
  if (!spec) return;
  const size = spec.over === "head" ? headDim : row.length;
  for (let from = 0; from < row.length; from += size)
    normalize(row.subarray(from, from + size), spec, weights);
}

/** In place. */
function normalize(
  x: Float64Array,
  { kind, epsilon }: Pick<NormSpec, "kind" | "epsilon">,
  { weight, bias }: NormWeights,
): void {
  let mean = 0;
  if (kind === "layer") {
    for (const value of x) mean += value;
    mean /= x.length;
  }
  let square = 0;
  for (const value of x) square += (value - mean) ** 2;
  const factor = 1 / Math.sqrt(square / x.length + epsilon);
  for (let i = 0; i < x.length; i++)
    x[i] = ((x[i] as number) - mean) * factor * (weight?.[i] ?? 1) + (bias?.[i] ?? 0);
}

function rotate(
  row: Float64Array,
  { rotary, headDim }: GroupedQueryAttentionSpec,
  { frequencies, factor }: RotaryFrequencies,
  position: number,
): void {
  const half = frequencies.length;
  const [step, partner] = rotary?.interleaved ? [2, 1] : [1, half];
  for (let i = 0; i < half; i++) {
    // Angles are rounded as those that models are trained with.
    const angle = Math.fround(position * (frequencies[i] as number));
    const [cos, sin] = [Math.cos(angle) * factor, Math.sin(angle) * factor];
    for (let head = 0; head < row.length; head += headDim) {
      const at = head + i * step;
      const [a, b] = [row[at] as number, row[at + partner] as number];
      row[at] = a * cos - b * sin;
      row[at + partner] = b * cos + a * sin;
    }
  }
}
