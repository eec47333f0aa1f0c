import {
  type AttentionMasker,
  type BlockMask,
  checkBlockMask,
  checkKeyPages,
  type GroupedQueryAttentionSpec,
  type KeyPages,
  maskedColumns,
} from "@coppice/core";
import type { HeadLayout } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import type { LayerCache } from "./cache-group.js";
import type { Piece } from "./units.js";

/** Positions that a query head sees from a position: blocks of `size` positions, the position's own among them. */
export interface Sight {
  readonly size: number;
  blocks(head: number, position: number): Int32Array;
}

/** What a masker lets the sequences of a run see in one layer; those that are missing see everything. */
export type Sights = ReadonlyMap<number, Sight>;

/** Rows of one unit. */
export interface ShownUnit {
  readonly pieces: readonly Piece[];
  /** [N, heads size] and [N, kvHeads size], rows in the order of the pieces' tokens. */
  readonly queries: Tensor;
  readonly keys: Tensor;
  readonly cache: LayerCache | undefined;
}

export interface SightRequest {
  readonly masker: AttentionMasker;
  readonly layer: number;
  readonly attention: GroupedQueryAttentionSpec;
  /** Of the rows and of the cache. */
  readonly layout: HeadLayout;
  /** Tokens of every sequence in the run. */
  readonly tokens: (sequence: number) => number;
  /** All units of the sequences in them. */
  readonly units: readonly ShownUnit[];
}

/** What a masker is asked about a run of `tokens` tokens behind `start` of the sequence; undefined: nothing. */
export function askedOf(
  masker: AttentionMasker,
  start: number,
  tokens: number,
): "prefill" | "decode" | undefined {
  if (start === 0) return masker.prefill && tokens > 1 ? "prefill" : undefined;
  return masker.decode && tokens === 1 ? "decode" : undefined;
}

/**
 * Shows a masker queries and keys, and takes what it says.
 * @throws COPPICE_ATTENTION_INVALID
 */
export function sightsOf({ masker, layer, attention, layout, tokens, units }: SightRequest): Sights {
  const { heads, kvHeads, headDim, scale } = attention;
  const prompts = new Map<number, { readonly queries: Float32Array; readonly keys: Float32Array }>();
  const sights = new Map<number, Sight>();
  const put = (rows: Tensor, row: number, count: number, out: Float32Array, at: number) => {
    const width = count * layout.size;
    const values = (rows.data as Float32Array).subarray(row * width, (row + 1) * width);
    copyHeads(values, layout, headDim, out, at * count * headDim);
  };
  for (const { pieces, queries, keys, cache } of units) {
    let row = 0;
    for (const [p, { sequence, begin, end, past }] of pieces.entries()) {
      const length = tokens(sequence);
      const asked = askedOf(masker, past - begin, length);
      const view = { layer, sequence, scale, heads, kvHeads, keyDim: headDim };
      const first = row;
      row += end - begin;
      if (!asked) continue;
      if (asked === "decode") {
        const own = new Float32Array(heads * headDim);
        put(queries, first, heads, own, 0);
        const all = new Float32Array((past + 1) * kvHeads * headDim);
        if (cache) copyCached(cache, p, past, layout, headDim, all);
        put(keys, first, kvHeads, all, past);
        const pages = masker.decode?.({ ...view, positions: past + 1, queries: own, keys: all });
        if (!pages) continue;
        checkKeyPages(pages, kvHeads, past + 1);
        sights.set(sequence, pageSight(pages, heads / kvHeads));
        continue;
      }
      const prompt = prompts.get(sequence) ?? {
        queries: new Float32Array(length * heads * headDim),
        keys: new Float32Array(length * kvHeads * headDim),
      };
      prompts.set(sequence, prompt);
      for (let i = begin; i < end; i++) {
        put(queries, first + i - begin, heads, prompt.queries, i);
        put(keys, first + i - begin, kvHeads, prompt.keys, i);
      }
      if (end < length) continue;
      prompts.delete(sequence);
      const mask = masker.prefill?.({ ...view, tokens: length, ...prompt });
      if (!mask) continue;
      checkBlockMask(mask, heads, length);
      sights.set(sequence, maskSight(mask));
    }
  }
  return sights;
}

/** [pieces, heads, S, places and S]: -Infinity where a sight, or what comes later, hides a key; keys lie by their positions. */
export function sightMask(
  sights: Sights,
  pieces: readonly Piece[],
  { heads, longest, places }: { readonly heads: number; readonly longest: number; readonly places: number },
): Float32Array {
  const columns = places + longest;
  const values = new Float32Array(pieces.length * heads * longest * columns).fill(Number.NEGATIVE_INFINITY);
  let row = 0;
  for (const { sequence, begin, end, past } of pieces) {
    const sight = sights.get(sequence);
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < longest; i++, row++) {
        const own = values.subarray(row * columns, (row + 1) * columns);
        const position = past + i;
        const show = (from: number, to: number) => {
          own.fill(0, from, Math.min(to, past));
          if (to > past) own.fill(0, places + Math.max(from - past, 0), places + to - past);
        };
        if (!sight || i >= end - begin) {
          show(0, position + 1);
          continue;
        }
        for (const block of sight.blocks(head, position)) {
          show(block * sight.size, Math.min((block + 1) * sight.size, position + 1));
        }
      }
    }
  }
  return values;
}

function maskSight(mask: BlockMask): Sight {
  const { blockSize: size } = mask;
  return { size, blocks: (head, position) => maskedColumns(mask, head, Math.floor(position / size)) };
}

function pageSight({ pageSize: size, heads }: KeyPages, share: number): Sight {
  return { size, blocks: (head) => heads[Math.floor(head / share)] as Int32Array };
}

/** Heads as the model has them, of heads that are laid out. */
function copyHeads(
  laid: Float32Array,
  { size, places }: HeadLayout,
  headDim: number,
  out: Float32Array,
  at: number,
): void {
  if (!places && size === headDim) {
    out.set(laid, at);
    return;
  }
  for (let head = 0; head * size < laid.length; head++) {
    for (let i = 0; i < headDim; i++) {
      out[at + head * headDim + i] = laid[head * size + (places?.[i] ?? i)] as number;
    }
  }
}

/** The keys of the first `past` positions of the `p`-th sequence of a cache, [past, kvHeads headDim]. */
function copyCached(
  { groups }: LayerCache,
  p: number,
  past: number,
  layout: HeadLayout,
  headDim: number,
  out: Float32Array,
): void {
  const { size } = layout;
  const kvHeads = groups.reduce((sum, { group }) => sum + group.heads.length, 0);
  for (const { group, places, key } of groups) {
    const values = key.data as Float32Array;
    for (const [h, head] of group.heads.entries()) {
      const first = (p * group.heads.length + h) * places * size;
      for (let position = 0; position < past; position++) {
        const laid = values.subarray(first + position * size, first + (position + 1) * size);
        copyHeads(laid, layout, headDim, out, (position * kvHeads + head) * headDim);
      }
    }
  }
}
