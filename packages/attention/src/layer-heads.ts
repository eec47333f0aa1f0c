import {
  type GroupedQueryAttentionSpec,
  type HeadNormSpec,
  type LimitableLayer,
  type NormSpec,
  type RotaryFrequencies,
  rotaryFrequencies,
} from "@coppice/core";
import type { NormWeights, ProfileWeights, ProjectionWeights } from "./profile-weights.js";

/** What attention of one layer reads of one text, by KV head. */
export interface LayerHeads {
  /** [kvHeads][S, G, headDim], of the wanted positions, turned by them. */
  readonly queries: readonly Float32Array[];
  /** [kvHeads][tokens, headDim], turned by their positions. */
  readonly keys: readonly Float32Array[];
  /** [kvHeads][tokens, headDim] */
  readonly values: readonly Float32Array[];
}

/**
 * Queries, keys and values in the order of `GroupedQueryAttentionSpec`: projections of the layer's normed input, norms, clip,
 * rotation, temperature.
 * @param hidden [tokens, hidden], the layer's input
 * @param positions of the queries that are wanted
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
  const x = new Float64Array(size);
  const q = new Float64Array(heads * headDim);
  const [k, v] = [new Float64Array(kvHeads * headDim), new Float64Array(kvHeads * headDim)];
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
  for (let t = 0; t < tokens; t++) {
    x.set(hidden.subarray(t * size, (t + 1) * size));
    normalize(x, attentionNorm, weights.norm);
    project(weights.key, x, k);
    turned(k, keyNorm, weights.keyNorm, t);
    scatter(k, keys, t);
    project(weights.value, x, v);
    limit(v, attention.clip);
    scatter(v, values, t);
    for (; positions[wanted] === t; wanted++) {
      project(weights.query, x, q);
      turned(q, queryNorm, weights.queryNorm, t);
      if (temperature) {
        const factor = 1 + temperature.scale * Math.log1p(Math.floor((t + 1) / temperature.floor));
        for (let i = 0; i < q.length; i++) q[i] = (q[i] as number) * factor;
      }
      scatter(q, queries, wanted);
    }
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

function project({ weight, bias }: ProjectionWeights, x: Float64Array, y: Float64Array): void {
  const size = x.length;
  for (let row = 0; row < y.length; row++) {
    const at = row * size;
    let [a, b, c, d] = [bias?.[row] ?? 0, 0, 0, 0];
    let i = 0;
    for (; i + 4 <= size; i += 4) {
      a += (weight[at + i] as number) * (x[i] as number);
      b += (weight[at + i + 1] as number) * (x[i + 1] as number);
      c += (weight[at + i + 2] as number) * (x[i + 2] as number);
      d += (weight[at + i + 3] as number) * (x[i + 3] as number);
    }
    for (; i < size; i++) a += (weight[at + i] as number) * (x[i] as number);
    y[row] = a + b + c + d;
  }
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
