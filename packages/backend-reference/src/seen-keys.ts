import {
  type AttentionSpec,
  type BlockMask,
  checkBlockMask,
  checkKeyPages,
  type KeyPages,
  maskedColumns,
  resolveSpans,
} from "@coppice/core";
import type { AttentionBatch, Projected } from "./attention.js";

/** Positions that a query sees, ascending and apart: from the first of each pair to before the second. */
export type Stretches = readonly (readonly [number, number])[];

/** What the query at a position sees in a query head. */
export type SeenKeys = (head: number, position: number) => Stretches;

/** What the tokens of one sequence see: what the model says, without what the batch's attention takes away. */
export function seenKeys(
  spec: Exclude<AttentionSpec, { kind: "other" }>,
  { attention, layer }: Pick<AttentionBatch, "attention" | "layer">,
  { sequence, past, tokens }: { sequence: number; past: number; tokens: number },
  { queries, keys, kvHeads, keyDim }: Projected,
): SeenKeys {
  const { heads, scale } = spec;
  const whole: SeenKeys = (_, position) => [[firstSeen(spec, position), position + 1]];
  if (!attention) return whole;
  if (attention.plan) {
    const spans = resolveSpans(attention.plan, layer, attention.lengths[sequence] as number);
    if (!spans) return whole;
    return (head, position) => {
      const span = spans[Math.floor((head * kvHeads) / heads)];
      const first = span ? Math.max(0, position - span.window + 1) : 0;
      if (!span || first <= span.sinks) return [[0, position + 1]];
      return [
        [0, span.sinks],
        [first, position + 1],
      ];
    };
  }
  const { masker } = attention;
  const view = { layer, sequence, scale, heads, kvHeads, keyDim, queries };
  if (past === 0 && tokens > 1) {
    const mask = masker.prefill?.({ ...view, tokens, keys });
    if (!mask) return whole;
    checkBlockMask(mask, heads, tokens);
    return maskKeys(mask);
  }
  if (past > 0 && tokens === 1) {
    const positions = past + 1;
    const pages = masker.decode?.({
      ...view,
      positions,
      keys: keys.subarray(0, positions * kvHeads * keyDim),
    });
    if (!pages) return whole;
    checkKeyPages(pages, kvHeads, positions);
    return pageKeys(pages, heads / kvHeads);
  }
  return whole;
}

function maskKeys(mask: BlockMask): SeenKeys {
  const { blockSize } = mask;
  return (head, position) =>
    blockStretches(maskedColumns(mask, head, Math.floor(position / blockSize)), blockSize, position);
}

function pageKeys({ pageSize, heads }: KeyPages, group: number): SeenKeys {
  return (head, position) =>
    blockStretches(heads[Math.floor(head / group)] as Int32Array, pageSize, position);
}

function blockStretches(blocks: Int32Array, size: number, position: number): Stretches {
  return Array.from(blocks, (block) => [block * size, Math.min((block + 1) * size, position + 1)] as const);
}

/** First position that the model lets `position` see. */
function firstSeen(spec: Exclude<AttentionSpec, { kind: "other" }>, position: number): number {
  const window = spec.slidingWindow === undefined ? 0 : position - spec.slidingWindow + 1;
  const chunk = spec.kind === "gqa" && spec.chunk ? position - (position % spec.chunk) : 0;
  return Math.max(0, window, chunk);
}
