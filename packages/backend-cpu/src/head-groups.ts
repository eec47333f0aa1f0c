import {
  type AttentionPlan,
  type AttentionSpec,
  type CheckedAttention,
  type HeadSpan,
  type LayerSpans,
  resolveSpans,
} from "@coppice/core";

/** What an attention plan says for a context of one length. */
export interface PlanSpans {
  /** Equal for equal spans. */
  readonly key: string;
  /** By decoder layer; undefined: as the model is. */
  readonly layers: readonly (LayerSpans | undefined)[];
}

/** Undefined when all heads see all of such a context. */
export function planSpans(plan: AttentionPlan, length: number): PlanSpans | undefined {
  const layers = plan.layers.map((_, layer) => resolveSpans(plan, layer, length));
  if (layers.every((spans) => spans === undefined)) return undefined;
  return { key: JSON.stringify(layers), layers };
}

/** What heads see in each sequence; undefined: what the model says. */
export function spansOf(
  attention: CheckedAttention | undefined,
  sequences: number,
): (PlanSpans | undefined)[] {
  const { plan, lengths = [] } = attention?.plan ? attention : {};
  return Array.from({ length: sequences }, (_, s) => plan && planSpans(plan, lengths[s] as number));
}

/** KV heads of a layer that have arrays of one length in a cache. */
export interface HeadGroup {
  /** Ascending. */
  readonly heads: Int32Array;
  /** The widest of their spans; undefined: all. */
  readonly span: HeadSpan | undefined;
  /** Span of each head; absent when all have `span`. */
  readonly own?: LayerSpans;
}

/** More groups save little memory, and each costs every step of a decode some operators more. */
const mostGroups = 3;
/** What a head that sees everything counts as, for the choice of groups. */
const everything = 2 ** 40;

/** The groups of a layer's KV heads: by span, and where there are more spans than groups, so that little is kept in vain. */
export function headGroups(spans: LayerSpans | undefined, attention: AttentionSpec): HeadGroup[] {
  if (attention.kind === "other") return [];
  const kvHeads = attention.kind === "gqa" ? attention.kvHeads : attention.heads;
  const each = spans ?? new Array<HeadSpan | undefined>(kvHeads).fill(ownSpan(attention));
  const widths = [...new Set(each.map(widthOf))].sort((a, b) => a - b);
  const counts = widths.map((width) => each.filter((span) => widthOf(span) === width).length);
  let first = 0;
  return groupEnds(widths, counts).map((end) => {
    const among = widths.slice(first, end);
    first = end;
    const heads = Int32Array.from(each.keys()).filter((head) => among.includes(widthOf(each[head])));
    const span = each[heads.find((head) => widthOf(each[head]) === among.at(-1)) as number];
    return among.length === 1 ? { heads, span } : { heads, span, own: Array.from(heads, (h) => each[h]) };
  });
}

/** What a layer sees by itself: its sliding window, or no more than its chunk. */
function ownSpan(attention: Exclude<AttentionSpec, { kind: "other" }>): HeadSpan | undefined {
  const chunk = attention.kind === "gqa" ? attention.chunk : undefined;
  const window = Math.min(attention.slidingWindow ?? everything, chunk ?? everything);
  return window === everything ? undefined : { sinks: 0, window };
}

function widthOf(span: HeadSpan | undefined): number {
  return span ? span.sinks + span.window : everything;
}

/** Ends of at most `mostGroups` runs of ascending widths, each counted as its widest, of the least sum. */
function groupEnds(widths: readonly number[], counts: readonly number[]): number[] {
  // best[k][end]: the least sum of the first `end` widths in k runs, and where the last of them begins.
  const total = widths.length;
  type Best = { readonly sum: number; readonly begin: number };
  const best: Best[][] = [[{ sum: 0, begin: 0 }]];
  for (let k = 1; k <= Math.min(mostGroups, total); k++) {
    const row: Best[] = [];
    for (let end = k; end <= total; end++) {
      let heads = 0;
      for (let begin = end - 1; begin >= k - 1; begin--) {
        heads += counts[begin] as number;
        const before = best[k - 1]?.[begin];
        if (!before) continue;
        const sum = before.sum + heads * (widths[end - 1] as number);
        if (sum < (row[end]?.sum ?? Number.POSITIVE_INFINITY)) row[end] = { sum, begin };
      }
    }
    best.push(row);
  }
  const ends: number[] = [];
  for (let k = best.length - 1, end = total; k > 0; k--) {
    ends.unshift(end);
    end = best[k]?.[end]?.begin as number;
  }
  return ends;
}
