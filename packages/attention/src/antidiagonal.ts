import {
  type AttentionMethod,
  type BlockMask,
  blockMask,
  CoppiceError,
  definePlugin,
  type PrefillView,
} from "@coppice/core";
import * as v from "valibot";
import { covering, descending, dot, softmax } from "./covering.js";
import { blockSizeSchema, shareSchema } from "./span-options.js";

/** Options of the plugin `antidiagonal`. */
export interface AntidiagonalOptions {
  /** Share of estimated attention that the chosen blocks of every row hold; default 0.9. At 1 nothing is masked. */
  readonly threshold?: number;
  /** Every query and key is looked at once per so many; divides the block size. Default 8. */
  readonly stride?: number;
  /** Tokens per block; default 64. */
  readonly blockSize?: number;
}

declare module "@coppice/core" {
  interface AttentionPlugins {
    antidiagonal: AntidiagonalOptions;
  }
}

/**
 * Masks of a prompt from sums along antidiagonals (XAttention, arXiv 2503.16428): groups of `stride` queries and keys are compared with
 * the order of one turned around, so that one product sums an antidiagonal of their scores, which every vertical line and every
 * slash crosses. For every row of blocks the fewest that hold the share are kept. Decoding sees everything.
 */
export const antidiagonal = definePlugin({
  kind: "attention",
  name: "antidiagonal",
  contract: 1,
  summary: "Masks blocks of a prompt by sums along antidiagonals (XAttention).",
  reference: "https://arxiv.org/abs/2503.16428",
  options: v.strictObject({
    threshold: v.exactOptional(shareSchema, 0.9),
    stride: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(1)), 8),
    blockSize: v.exactOptional(blockSizeSchema, 64),
  }),
  create(options): AttentionMethod {
    const { stride, blockSize } = options;
    if (blockSize % stride !== 0) {
      throw new CoppiceError(
        "COPPICE_PLUGIN_OPTIONS",
        `the stride ${stride} does not divide the block size ${blockSize}`,
        { hint: `give a stride such as ${blockSize % 8 === 0 ? 8 : 1}`, details: { stride, blockSize } },
      );
    }
    return {
      needs: { runner: false, weights: false, samples: false },
      masker: () => ({ prefill: (view) => antidiagonalMask(view, options) }),
    };
  },
});

/** The mask of a prompt; undefined where all of it is seen. */
export function antidiagonalMask(
  view: PrefillView,
  { threshold, stride, blockSize }: Required<AntidiagonalOptions>,
): BlockMask | undefined {
  const { tokens, heads } = view;
  // The first block and the diagonal are always seen.
  if (threshold === 1 || tokens <= 2 * blockSize) return undefined;
  const blocks = Math.ceil(tokens / blockSize);
  const seen = Array.from({ length: heads }, (_, head) => {
    const grid = new Uint8Array(blocks * blocks);
    const sums = blockSums(view, head, stride, blockSize);
    for (let row = 0; row < blocks; row++) {
      const shares = sums.slice(row * blocks, row * blocks + row + 1);
      const total = shares.reduce((sum, share) => sum + share, 0);
      const forced = row === 0 ? [0] : [0, row];
      const covered = forced.reduce((sum, column) => sum + (shares[column] as number), 0);
      for (const column of forced) shares[column] = 0;
      const more = covering(shares, descending(shares), threshold * total, covered);
      for (const column of [...forced, ...more]) grid[row * blocks + column] = 1;
    }
    return grid;
  });
  return blockMask(
    blockSize,
    blocks,
    heads,
    (head, row, column) => seen[head]?.[row * blocks + column] === 1,
  );
}

/** Estimated attention of every block, [blocks, blocks]; rows of full blocks sum to `blockSize / stride`. */
function blockSums(view: PrefillView, head: number, stride: number, blockSize: number): Float64Array {
  const { tokens, heads, kvHeads, keyDim, queries, keys, scale } = view;
  const kvHead = Math.floor((head * kvHeads) / heads);
  const blocks = Math.ceil(tokens / blockSize);
  const groups = Math.ceil(tokens / stride);
  const sums = new Float64Array(blocks * blocks);
  const row = new Float64Array(groups);
  const groupsPerBlock = blockSize / stride;
  for (let r = 0; r < groups; r++) {
    for (let c = 0; c <= r; c++) {
      let score = 0;
      for (let s = 0; s < stride; s++) {
        const [query, key] = [r * stride + stride - 1 - s, c * stride + s];
        // The last group may be cut short.
        if (query >= tokens || key >= tokens) continue;
        score += dot(
          queries,
          (query * heads + head) * keyDim,
          keys,
          (key * kvHeads + kvHead) * keyDim,
          keyDim,
        );
      }
      row[c] = (scale * score) / stride;
    }
    softmax(row, r + 1);
    const base = Math.floor(r / groupsPerBlock) * blocks;
    for (let c = 0; c <= r; c++) {
      const at = base + Math.floor(c / groupsPerBlock);
      sums[at] = (sums[at] as number) + (row[c] as number);
    }
  }
  return sums;
}
