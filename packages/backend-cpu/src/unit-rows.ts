import type { CheckedRunRequest } from "@coppice/core";
import type { PackedRows } from "./packed-rows.js";
import type { Unit } from "./units.js";

/** Rows whose logits are wanted, and the wanted positions that they serve. */
export interface WantedRows {
  /** Ascending, each once. */
  readonly rows: Int32Array;
  /** Index of a wanted position among all of the request, and of its row in `rows`; ascending by row. */
  readonly picks: readonly { readonly index: number; readonly row: number }[];
}

/** What is wanted of the rows of a unit. */
export function wantedRows(
  { pieces }: Unit,
  packed: PackedRows,
  { rows, starts }: CheckedRunRequest,
): WantedRows {
  const found: { index: number; row: number }[] = [];
  for (const [p, { sequence, begin, end }] of rows ? pieces.entries() : []) {
    const start = starts[sequence] as number;
    const offset = (packed.offsets[p] as number) - begin - start;
    for (
      let index = lowerBound(rows as Int32Array, start + begin);
      index < (rows as Int32Array).length;
      index++
    ) {
      const at = (rows as Int32Array)[index] as number;
      if (at >= start + end) break;
      found.push({ index, row: packed.rowOf[offset + at] as number });
    }
  }
  const distinct = Int32Array.from(new Set(found.map(({ row }) => row))).sort();
  const order = new Map(Array.from(distinct, (row, i) => [row, i]));
  const picks = found.map(({ index, row }) => ({ index, row: order.get(row) as number }));
  return { rows: distinct, picks: picks.sort((a, b) => a.row - b.row || a.index - b.index) };
}

/** First index of an ascending array whose value is at least `least`. */
function lowerBound(values: Int32Array, least: number): number {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((values[middle] as number) < least) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Places of the tokens of a unit in the packed order of the request. */
export function placesOf({ pieces }: Unit, { starts }: CheckedRunRequest): Int32Array {
  const places = pieces.flatMap(({ sequence, begin, end }) =>
    Array.from({ length: end - begin }, (_, i) => (starts[sequence] as number) + begin + i),
  );
  return Int32Array.from(places);
}

/** Copies the row of every token of a unit to its place in the packed order of the request. */
export function spreadRows(
  { pieces }: Unit,
  { offsets, rowOf }: PackedRows,
  { starts }: CheckedRunRequest,
  rows: Float32Array,
  size: number,
  out: Float32Array,
): void {
  for (const [p, { sequence, begin, end }] of pieces.entries()) {
    for (let i = begin; i < end; i++) {
      const row = rowOf[(offsets[p] as number) + i - begin] as number;
      out.set(rows.subarray(row * size, (row + 1) * size), ((starts[sequence] as number) + i) * size);
    }
  }
}

export function gatherRows(rows: Float32Array, wanted: Int32Array, size: number): Float32Array {
  const picked = new Float32Array(wanted.length * size);
  for (const [i, row] of wanted.entries()) picked.set(rows.subarray(row * size, (row + 1) * size), i * size);
  return picked;
}
