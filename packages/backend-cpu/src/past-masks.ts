import { CachePlaces, type HeadSpan } from "@coppice/core";
import type { HeadGroup } from "./head-groups.js";
import type { Piece } from "./units.js";

export interface PastMaskRequest {
  readonly pieces: readonly Piece[];
  /** S, the tokens of the longest piece. */
  readonly longest: number;
  /** P: places in front of the new tokens. */
  readonly places: number;
  readonly group: HeadGroup;
  /** Query heads per KV head. */
  readonly share: number;
  /** Positions of a chunk, outside of which nothing is seen. */
  readonly chunk: number | undefined;
}

/** [pieces, 1 or the group's query heads, S, P + S]: -Infinity where a new token does not see a place or a new token. */
export function pastMask(request: PastMaskRequest): Float32Array {
  const { pieces, longest, places, group, share, chunk } = request;
  const spans = group.own ?? [group.span];
  const repeats = group.own ? share : 1;
  const columns = places + longest;
  const each = longest * columns;
  const values = new Float32Array(pieces.length * spans.length * repeats * each);
  const layout = new CachePlaces(group.span);
  let at = 0;
  for (const { begin, end, past } of pieces) {
    for (const span of spans) {
      const mask = values.subarray(at, at + each);
      for (let i = 0; i < longest; i++) {
        const row = mask.subarray(i * columns, (i + 1) * columns);
        row.fill(Number.NEGATIVE_INFINITY, layout.filled(past), places);
        // Padding sees itself like the last token, so that it stays finite.
        row.fill(Number.NEGATIVE_INFINITY, places + i + 1);
        if (i < end - begin) hideFrom(row, span, chunk, { query: past + i, past, places, layout });
      }
      for (let copy = 1; copy < repeats; copy++) values.copyWithin(at + copy * each, at, at + each);
      at += repeats * each;
    }
  }
  return values;
}

/** [1, spans, S, S]: -Infinity where a span hides a token of sequences that start here. Causality is not its business. */
export function startMask(spans: readonly (HeadSpan | undefined)[], length: number): Float32Array {
  const values = new Float32Array(spans.length * length * length);
  for (const [m, span] of spans.entries()) {
    if (!span) continue;
    for (let i = span.sinks + span.window; i < length; i++) {
      const row = (m * length + i) * length;
      values.fill(Number.NEGATIVE_INFINITY, row + span.sinks, row + i - span.window + 1);
    }
  }
  return values;
}

/** [S, S]: -Infinity between chunks of `size` tokens of a sequence that starts here. */
export function chunkMask(size: number, length: number): Float32Array {
  const values = new Float32Array(length * length);
  for (let i = 0; i < length; i++) {
    const first = i - (i % size);
    values.fill(Number.NEGATIVE_INFINITY, i * length, i * length + first);
    values.fill(Number.NEGATIVE_INFINITY, i * length + Math.min(first + size, length), (i + 1) * length);
  }
  return values;
}

interface MaskedQuery {
  /** Its position. */
  readonly query: number;
  readonly past: number;
  readonly places: number;
  readonly layout: CachePlaces;
}

function hideFrom(
  row: Float32Array,
  span: HeadSpan | undefined,
  chunk: number | undefined,
  { query, past, places, layout }: MaskedQuery,
): void {
  const hide = (from: number, to: number) => {
    if (from >= to) return;
    layout.ranges(from, to, past, (_, place, count) => {
      row.fill(Number.NEGATIVE_INFINITY, place, place + count);
    });
    if (to > past) row.fill(Number.NEGATIVE_INFINITY, places + Math.max(from - past, 0), places + to - past);
  };
  if (span) hide(span.sinks, query - span.window + 1);
  if (chunk !== undefined) hide(0, chunk * Math.floor(query / chunk));
}
