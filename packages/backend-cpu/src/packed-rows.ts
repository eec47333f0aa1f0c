import type { CheckedRunRequest } from "@coppice/core";
import type { Piece } from "./units.js";

/** The rows of a unit: tokens whose hidden states are computed, each once. */
export interface PackedRows {
  /** N */
  readonly count: number;
  /** Row of every token of the unit's pieces, one piece behind the other. */
  readonly rowOf: Int32Array;
  /** [N], for each row a token of the unit that it stands for. */
  readonly tokenOf: Int32Array;
  /** Token offset of every piece in `rowOf`. */
  readonly offsets: Int32Array;
  /** S, the tokens of the longest piece. */
  readonly longest: number;
  /** [pieces, S], row of every padded token. */
  readonly pad: Int32Array;
  /** [N], padded token of every row. */
  readonly unpad: Int32Array;
}

/**
 * Gives every token of a unit its row. With `share`, tokens with equal beginnings share one: the hidden state of a
 * token depends on it and those before it alone, so "Compute: 1" in two hundred prompts is computed once.
 *
 * @param hidden packed input rows of the request when they are given; rows are shared only where these agree as well
 */
export function packRows(
  pieces: readonly Piece[],
  sequences: readonly Int32Array[],
  { starts }: CheckedRunRequest,
  vocabSize: number,
  share: boolean,
  hidden?: { readonly values: Float32Array; readonly size: number },
): PackedRows {
  const offsets = new Int32Array(pieces.length);
  let tokens = 0;
  let longest = 0;
  for (const [p, { begin, end }] of pieces.entries()) {
    offsets[p] = tokens;
    tokens += end - begin;
    longest = Math.max(longest, end - begin);
  }
  const rowOf = new Int32Array(tokens);
  const tokenOf = new Int32Array(tokens);
  const pad = new Int32Array(pieces.length * longest);
  const unpad = new Int32Array(tokens);
  // Request-wide row of the token that each row stands for, to compare given inputs.
  const origin = hidden && new Int32Array(tokens);
  // Row of a beginning by the row before it and its last token; -1 is the row before the first.
  const rows = new Map<number, number>();
  let count = 0;
  for (const [p, { sequence, begin, end }] of pieces.entries()) {
    const ids = sequences[sequence] as Int32Array;
    let previous = -1;
    for (let i = begin; i < end; i++) {
      const token = (offsets[p] as number) + i - begin;
      const padded = p * longest + i - begin;
      const packed = (starts[sequence] as number) + i;
      const key = (previous + 1) * vocabSize + (ids[i] as number);
      let row = share ? rows.get(key) : undefined;
      if (row !== undefined && hidden && !equalRows(hidden, origin?.[row] as number, packed)) row = undefined;
      if (row === undefined) {
        row = count++;
        if (share) rows.set(key, row);
        tokenOf[row] = token;
        unpad[row] = padded;
        if (origin) origin[row] = packed;
      }
      rowOf[token] = row;
      pad[padded] = row;
      previous = row;
    }
    // Padding must name some row; nothing looks at it.
    pad.fill(previous, p * longest + end - begin, (p + 1) * longest);
  }
  return {
    count,
    rowOf,
    tokenOf: tokenOf.subarray(0, count),
    offsets,
    longest,
    pad,
    unpad: unpad.subarray(0, count),
  };
}

function equalRows(
  { values, size }: { readonly values: Float32Array; readonly size: number },
  a: number,
  b: number,
): boolean {
  for (let i = 0; i < size; i++) if (values[a * size + i] !== values[b * size + i]) return false;
  return true;
}
