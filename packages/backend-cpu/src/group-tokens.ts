import { type Routing, skipped } from "@coppice/core";

/**
 * The choices of all tokens, of which some run: sorted by slot and within a slot by token. N tokens choose k slots each;
 * the outputs of K choices are known, and M rows run.
 */
export interface TokenGroups {
  /** Slots that run for some token, ascending, and for how many. */
  readonly used: readonly number[];
  readonly sizes: readonly number[];
  /** [M], the token of every row that runs. */
  readonly rows: Int32Array;
  /** Choices that run: at most M, and less by the rows that only keep another one company. */
  readonly runs: number;
  /** [K], the choices (token k + rank) whose outputs are known. */
  readonly known: Int32Array;
  /** [k, N], where the choices of a token are: 0 to K - 1 in `known`, K to K + M - 1 in `rows`; K + M for one that is skipped. */
  readonly places: Int32Array;
  /** [k, N], their gate weights. */
  readonly gates: Float32Array;
}

export interface GroupOptions {
  /**
   * Never run an expert on one row alone, but on that row twice. Products of a matrix and a single row add in another order
   * than those of several rows, and a row's result is to be the same bits in any company.
   */
  readonly company?: boolean;
  /** Whether the output of a slot is known for a token. Default: of none. */
  readonly isKnown?: (slot: number, token: number) => boolean;
}

export function groupTokens(
  { slots, gates, topK }: Routing,
  slotCount: number,
  { company = false, isKnown = () => false }: GroupOptions = {},
): TokenGroups {
  const tokens = slots.length / topK;
  const next = new Int32Array(slotCount);
  const known: number[] = [];
  const isNew = new Uint8Array(slots.length);
  let runs = 0;
  for (const [choice, slot] of slots.entries()) {
    if (slot === skipped) continue;
    if (isKnown(slot, Math.floor(choice / topK))) known.push(choice);
    else {
      isNew[choice] = 1;
      next[slot] = (next[slot] as number) + 1;
      runs++;
    }
  }
  const used: number[] = [];
  const sizes: number[] = [];
  let at = 0;
  for (let slot = 0; slot < slotCount; slot++) {
    const choices = next[slot] as number;
    next[slot] = at;
    if (choices === 0) continue;
    const size = company ? Math.max(2, choices) : choices;
    at += size;
    used.push(slot);
    sizes.push(size);
  }
  const rows = new Int32Array(at);
  const places = new Int32Array(slots.length).fill(known.length + at);
  const byRank = new Float32Array(slots.length);
  const put = (choice: number, place: number) => {
    const [token, rank] = [Math.floor(choice / topK), choice % topK];
    places[rank * tokens + token] = place;
    byRank[rank * tokens + token] = gates[choice] as number;
  };
  for (const [place, choice] of known.entries()) put(choice, place);
  for (const [choice, slot] of slots.entries()) {
    if (isNew[choice] === 0) continue;
    const row = next[slot] as number;
    next[slot] = row + 1;
    rows[row] = Math.floor(choice / topK);
    put(choice, known.length + row);
  }
  if (company) keepCompany(rows, used, sizes, next);
  return { used, sizes, rows, runs, known: Int32Array.from(known), places, gates: byRank };
}

/** Fills the second row of slots that one token chose. */
function keepCompany(
  rows: Int32Array,
  used: readonly number[],
  sizes: readonly number[],
  ends: Int32Array,
): void {
  let at = 0;
  for (const [i, slot] of used.entries()) {
    if ((ends[slot] as number) === at + 1) rows[at + 1] = rows[at] as number;
    at += sizes[i] as number;
  }
}
