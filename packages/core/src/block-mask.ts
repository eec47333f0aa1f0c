import type { BlockMask, LayerSpans } from "./attention-plan.js";
import { CoppiceError } from "./errors.js";

/**
 * The smallest block mask that contains what the heads of a layer see of a text of `length` tokens: one layout per query
 * head, or one for all where all KV heads have the same span.
 * @param heads query heads, a multiple of the KV heads in `spans`
 */
export function spanMask(spans: LayerSpans, heads: number, length: number, blockSize: number): BlockMask {
  const blocks = Math.ceil(length / blockSize);
  const same = spans.every((span) => span?.sinks === spans[0]?.sinks && span?.window === spans[0]?.window);
  const layouts = same ? 1 : heads;
  const group = heads / spans.length;
  return blockMask(blockSize, blocks, layouts, (layout, row, column) => {
    const span = same ? spans[0] : spans[Math.floor(layout / group)];
    // What the first query of the block sees reaches furthest back.
    const first = span ? row * blockSize - span.window + 1 : 0;
    return !span || column * blockSize < span.sinks || (column + 1) * blockSize > first;
  });
}

/** The mask of the blocks on and below the diagonal for which `sees` holds. */
export function blockMask(
  blockSize: number,
  blocks: number,
  layouts: number,
  sees: (layout: number, row: number, column: number) => boolean,
): BlockMask {
  const rows = new Int32Array(layouts * (blocks + 1));
  const found: number[][] = [];
  for (let layout = 0; layout < layouts; layout++) {
    const columns: number[] = [];
    for (let row = 0; row < blocks; row++) {
      for (let column = 0; column <= row; column++) if (sees(layout, row, column)) columns.push(column);
      rows[layout * (blocks + 1) + row + 1] = columns.length;
    }
    found.push(columns);
  }
  const most = found.reduce((max, { length }) => Math.max(max, length), 0);
  const columns = new Int32Array(layouts * most).fill(-1);
  found.forEach((list, layout) => {
    columns.set(list, layout * most);
  });
  return { blockSize, blocks, layouts, rows, columns };
}

/** Blocks of keys that the queries of block `row` see in query head `head`, ascending. */
export function maskedColumns(mask: BlockMask, head: number, row: number): Int32Array {
  const layout = head % mask.layouts;
  const at = layout * (mask.blocks + 1) + row;
  const part = (layout * mask.columns.length) / mask.layouts;
  return mask.columns.subarray(part + (mask.rows[at] as number), part + (mask.rows[at + 1] as number));
}

/** Whether the query at position `query` sees the key at `key` in query head `head`. */
export function seesKey(mask: BlockMask, head: number, query: number, key: number): boolean {
  if (key > query) return false;
  const columns = maskedColumns(mask, head, Math.floor(query / mask.blockSize));
  return columns.includes(Math.floor(key / mask.blockSize));
}

/** Share of the causal pairs of queries and keys of a text of `length` tokens that the mask lets through. */
export function maskDensity(mask: BlockMask, length: number): number {
  const { blockSize, blocks, layouts } = mask;
  let seen = 0;
  for (let layout = 0; layout < layouts; layout++) {
    for (let row = 0; row < blocks; row++) {
      const queries = Math.min(length, (row + 1) * blockSize) - row * blockSize;
      for (const column of maskedColumns(mask, layout, row))
        seen += column === row ? (queries * (queries + 1)) / 2 : queries * blockSize;
    }
  }
  return seen / layouts / ((length * (length + 1)) / 2);
}

/**
 * Checks what a masker returned for a text of `length` tokens.
 * @throws COPPICE_ATTENTION_INVALID
 */
export function checkBlockMask(mask: BlockMask, heads: number, length: number): void {
  const { blockSize, blocks, layouts, rows, columns } = mask;
  const fail = (message: string) =>
    new CoppiceError("COPPICE_ATTENTION_INVALID", `not a usable block mask: ${message}`);
  if (!Number.isSafeInteger(blockSize) || blockSize < 1)
    throw fail(`blockSize is ${blockSize}, expected a whole number of at least 1`);
  const wanted = Math.ceil(length / blockSize);
  if (blocks !== wanted)
    throw fail(`it has ${blocks} blocks; ${length} tokens in blocks of ${blockSize} are ${wanted}`);
  if (!Number.isSafeInteger(layouts) || layouts < 1 || heads % layouts !== 0)
    throw fail(`it has ${layouts} layouts, which do not divide ${heads} heads`);
  if (rows.length !== layouts * (blocks + 1))
    throw fail(`rows has ${rows.length} values, expected ${layouts} x ${blocks + 1}`);
  if (columns.length % layouts !== 0)
    throw fail(`columns has ${columns.length} values, which ${layouts} layouts do not divide`);
  const most = columns.length / layouts;
  for (let layout = 0; layout < layouts; layout++) {
    const first = rows[layout * (blocks + 1)] as number;
    if (first !== 0) throw fail(`rows of layout ${layout} begin with ${first}, expected 0`);
    for (let row = 0; row < blocks; row++) {
      const [from, to] = [rows[layout * (blocks + 1) + row], rows[layout * (blocks + 1) + row + 1]] as [
        number,
        number,
      ];
      if (to < from || to > most)
        throw fail(`row ${row} of layout ${layout} holds columns ${from} to ${to} of ${most}`);
      for (let at = from; at < to; at++) {
        const column = columns[layout * most + at] as number;
        const previous = at === from ? -1 : (columns[layout * most + at - 1] as number);
        if (column <= previous || column > row)
          throw fail(
            `row ${row} of layout ${layout} has block ${column} behind ${previous}; expected ascending ones up to ${row}`,
          );
      }
      if (to === from || columns[layout * most + to - 1] !== row)
        throw fail(`row ${row} of layout ${layout} lacks its own block, so that its queries may see nothing`);
    }
  }
}
