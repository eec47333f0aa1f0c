import { type Routing, skipped } from "@coppice/core";

/**
 * The choices of all tokens that run, sorted by slot and within a slot by token. N tokens choose k slots each; M of the
 * choices run.
 */
export interface TokenGroups {
  /** Slots that some token chose, ascending, and how many did. */
  readonly used: readonly number[];
  readonly sizes: readonly number[];
  /** [M], token of every choice. */
  readonly rows: Int32Array;
  /** [k, N], where in `rows` a token's choices are; M for one that is skipped. */
  readonly places: Int32Array;
  /** [k, N], their gate weights. */
  readonly gates: Float32Array;
}

export function groupTokens({ slots, gates, topK }: Routing, slotCount: number): TokenGroups {
  const next = new Int32Array(slotCount);
  for (const slot of slots) if (slot !== skipped) next[slot] = (next[slot] as number) + 1;
  const used: number[] = [];
  const sizes: number[] = [];
  let at = 0;
  for (let slot = 0; slot < slotCount; slot++) {
    const size = next[slot] as number;
    next[slot] = at;
    at += size;
    if (size === 0) continue;
    used.push(slot);
    sizes.push(size);
  }
  const tokens = slots.length / topK;
  const rows = new Int32Array(at);
  const places = new Int32Array(slots.length).fill(at);
  const byRank = new Float32Array(slots.length);
  for (let token = 0; token < tokens; token++) {
    for (let rank = 0; rank < topK; rank++) {
      const choice = token * topK + rank;
      const slot = slots[choice] as number;
      if (slot === skipped) continue;
      const place = next[slot] as number;
      next[slot] = place + 1;
      rows[place] = token;
      places[rank * tokens + token] = place;
      byRank[rank * tokens + token] = gates[choice] as number;
    }
  }
  return { used, sizes, rows, places, gates: byRank };
}
