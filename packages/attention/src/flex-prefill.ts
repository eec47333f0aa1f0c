import {
  type AttentionMethod,
  type BlockMask,
  blockMask,
  definePlugin,
  type PrefillView,
} from "@coppice/core";
import * as v from "valibot";
import { covering, descending, dot, softmax } from "./covering.js";
import { blockSizeSchema, shareSchema } from "./span-options.js";

/** Options of the plugin `flex-prefill`. */
export interface FlexPrefillOptions {
  /** Share of attention that the chosen blocks are to hold; default 0.9. At 1 nothing is masked. */
  readonly gamma?: number;
  /** Largest distance at which the estimate from pooled queries and keys is trusted, 0 never; default 0.1. */
  readonly tau?: number;
  /** Least tokens that each kind of pattern keeps; texts that are no longer stay whole. Default 1024. */
  readonly minimum?: number;
  /** Tokens per block; default 64. */
  readonly blockSize?: number;
}

declare module "@coppice/core" {
  interface AttentionPlugins {
    "flex-prefill": FlexPrefillOptions;
  }
}

/**
 * Masks of a prompt that hold a share of the attention of its last queries (FlexPrefill, arXiv 2502.20766, algorithms 1 to 4). A head
 * whose pooled queries and keys foretell where attention goes takes the blocks that they foretell; any other takes vertical lines
 * (keys that all queries see) and slashes (distances at which all queries see). Decoding sees everything.
 */
export const flexPrefill = definePlugin({
  kind: "attention",
  name: "flex-prefill",
  contract: 1,
  summary: "Masks blocks of a prompt by a share of attention to keep (FlexPrefill).",
  reference: "https://arxiv.org/abs/2502.20766",
  options: v.strictObject({
    gamma: v.exactOptional(shareSchema, 0.9),
    tau: v.exactOptional(v.pipe(v.number(), v.minValue(0), v.maxValue(1)), 0.1),
    minimum: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(1)), 1024),
    blockSize: v.exactOptional(blockSizeSchema, 64),
  }),
  create: (options): AttentionMethod => ({
    needs: { runner: false, weights: false, samples: false },
    masker: () => ({ prefill: (view) => flexPrefillMask(view, options) }),
  }),
});

/** The mask of a prompt; undefined where it is short enough to be seen whole. */
export function flexPrefillMask(
  view: PrefillView,
  options: Required<FlexPrefillOptions>,
): BlockMask | undefined {
  const { tokens, heads } = view;
  const { gamma, minimum, blockSize } = options;
  const least = Math.ceil(minimum / blockSize);
  if (gamma === 1 || tokens <= blockSize * Math.max(2, least)) return undefined;
  const blocks = Math.ceil(tokens / blockSize);
  const pooled = pooledKeys(view, blockSize);
  const seen = Array.from({ length: heads }, (_, head) => headBlocks(view, head, pooled, options));
  return blockMask(
    blockSize,
    blocks,
    heads,
    (head, row, column) => seen[head]?.[row * blocks + column] === 1,
  );
}

/** 1 for every block that a head sees, [blocks, blocks]. */
function headBlocks(
  view: PrefillView,
  head: number,
  pooled: Float32Array,
  { gamma, tau, minimum, blockSize }: Required<FlexPrefillOptions>,
): Uint8Array {
  const blocks = Math.ceil(view.tokens / blockSize);
  const least = Math.ceil(minimum / blockSize);
  const { vertical, slash } = lastQueries(view, head, blockSize);
  const columns = sumBlocks(vertical, blockSize);
  const distances = sumBlocks(slash, blockSize);
  const means = pooledQueries(view, head, blockSize);
  const foretold = distance(foretell(view, head, means.last, pooled, blocks), columns) < tau;
  const count = (values: Float64Array) => {
    if (foretold) return least;
    const order = descending(values);
    return Math.max(least, Math.floor(covering(values, order, gamma).length / blockSize) + 1);
  };
  const [columnCount, distanceCount] = [count(vertical), count(slash)];
  // The first block and the diagonal always count among them.
  columns[0] = Number.POSITIVE_INFINITY;
  distances[0] = Number.POSITIVE_INFINITY;
  const grid = new Uint8Array(blocks * blocks);
  for (const column of descending(columns).subarray(0, columnCount)) {
    for (let row = column; row < blocks; row++) grid[row * blocks + column] = 1;
  }
  for (const back of descending(distances).subarray(0, distanceCount)) {
    for (let row = back; row < blocks; row++) grid[row * blocks + row - back] = 1;
  }
  if (foretold) {
    const shares = new Float64Array(blocks * blocks);
    for (let row = 0; row < blocks; row++) {
      shares.set(foretell(view, head, means.rows[row] as Float32Array, pooled, row + 1), row * blocks);
    }
    // Of all rows together, each of which holds 1.
    for (const at of covering(shares, descending(shares), gamma * blocks)) {
      if (at % blocks <= Math.floor(at / blocks)) grid[at] = 1;
    }
  }
  return grid;
}

/**
 * What the last `blockSize` queries attend to: mean attention by key, and by distance between query and key, each [tokens].
 */
function lastQueries(view: PrefillView, head: number, blockSize: number) {
  const { tokens, heads, kvHeads, keyDim, queries, keys, scale } = view;
  const kvHead = Math.floor((head * kvHeads) / heads);
  const first = tokens - Math.min(blockSize, tokens);
  const vertical = new Float64Array(tokens);
  const slash = new Float64Array(tokens);
  const row = new Float64Array(tokens);
  for (let i = first; i < tokens; i++) {
    for (let j = 0; j <= i; j++) {
      row[j] =
        scale * dot(queries, (i * heads + head) * keyDim, keys, (j * kvHeads + kvHead) * keyDim, keyDim);
    }
    softmax(row, i + 1);
    for (let j = 0; j <= i; j++) {
      const share = (row[j] as number) / (tokens - first);
      vertical[j] = (vertical[j] as number) + share;
      slash[i - j] = (slash[i - j] as number) + share;
    }
  }
  return { vertical, slash };
}

function sumBlocks(values: Float64Array, blockSize: number): Float64Array {
  const sums = new Float64Array(Math.ceil(values.length / blockSize));
  values.forEach((value, i) => {
    const block = Math.floor(i / blockSize);
    sums[block] = (sums[block] as number) + value;
  });
  return sums;
}

/** Mean key of every block, [blocks, kvHeads * keyDim]. */
function pooledKeys({ tokens, kvHeads, keyDim, keys }: PrefillView, blockSize: number): Float32Array {
  const size = kvHeads * keyDim;
  const blocks = Math.ceil(tokens / blockSize);
  const means = new Float32Array(blocks * size);
  for (let block = 0; block < blocks; block++) {
    const end = Math.min(tokens, (block + 1) * blockSize);
    means.set(meanRow(keys, block * blockSize, end, size, 0, size), block * size);
  }
  return means;
}

/** Mean query of every block, and of the last `blockSize` queries, each [keyDim]. */
function pooledQueries({ tokens, heads, keyDim, queries }: PrefillView, head: number, blockSize: number) {
  const size = heads * keyDim;
  const mean = (from: number, to: number) => meanRow(queries, from, to, size, head * keyDim, keyDim);
  const rows = Array.from({ length: Math.ceil(tokens / blockSize) }, (_, block) =>
    mean(block * blockSize, Math.min(tokens, (block + 1) * blockSize)),
  );
  return { rows, last: mean(Math.max(0, tokens - blockSize), tokens) };
}

/** Mean of rows `from` to `to` of a matrix with rows of `stride` values, of `width` columns from `at`. */
function meanRow(
  values: Float32Array,
  from: number,
  to: number,
  stride: number,
  at: number,
  width: number,
): Float32Array {
  const sums = new Float64Array(width);
  for (let row = from; row < to; row++) {
    for (let d = 0; d < width; d++) sums[d] = (sums[d] as number) + (values[row * stride + at + d] as number);
  }
  return Float32Array.from(sums, (sum) => sum / (to - from));
}

/** Attention of a pooled query over the first `count` pooled keys. */
function foretell(
  { heads, kvHeads, keyDim, scale }: PrefillView,
  head: number,
  query: Float32Array,
  pooled: Float32Array,
  count: number,
): Float64Array {
  const kvHead = Math.floor((head * kvHeads) / heads);
  const shares = Float64Array.from(
    { length: count },
    (_, block) => scale * dot(query, 0, pooled, (block * kvHeads + kvHead) * keyDim, keyDim),
  );
  softmax(shares);
  return shares;
}

/** Square root of the Jensen-Shannon divergence of two distributions, in nats. */
function distance(p: Float64Array, q: Float64Array): number {
  let sum = 0;
  const part = (value: number, mean: number) => (value > 0 ? value * Math.log(value / mean) : 0);
  for (let i = 0; i < p.length; i++) {
    const [a, b] = [p[i] as number, q[i] as number];
    sum += part(a, (a + b) / 2) + part(b, (a + b) / 2);
  }
  return Math.sqrt(Math.max(0, sum / 2));
}
