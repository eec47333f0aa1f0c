import type { Routing } from "@coppice/core";

/** The choices of all tokens, sorted by slot and within a slot by token. */
export interface TokenGroups {
  /** Slots that some token chose, ascending, and how many did. */
  readonly used: readonly number[];
  readonly sizes: readonly number[];
  /** [tokens * k], token of every choice. */
  readonly rows: BigInt64Array;
  /** [tokens * k], gate weight of every choice. */
  readonly gates: Float32Array;
  /** [tokens, k], place of a token's choices in `rows`. */
  readonly places: Int32Array;
}

export function groupTokens({ slots, gates, topK }: Routing, slotCount: number): TokenGroups {
  const counts = new Int32Array(slotCount);
  for (const slot of slots) counts[slot] = (counts[slot] as number) + 1;
  const next = new Int32Array(slotCount);
  const used: number[] = [];
  const sizes: number[] = [];
  let at = 0;
  for (let slot = 0; slot < slotCount; slot++) {
    const size = counts[slot] as number;
    next[slot] = at;
    at += size;
    if (size === 0) continue;
    used.push(slot);
    sizes.push(size);
  }
  const rows = new BigInt64Array(slots.length);
  // Every token number fits the low half of its 64 bits; making a BigInt for each would take longer than routing.
  const low = new Int32Array(rows.buffer);
  const sorted = new Float32Array(slots.length);
  const places = new Int32Array(slots.length);
  for (let choice = 0; choice < slots.length; choice++) {
    const slot = slots[choice] as number;
    const place = next[slot] as number;
    next[slot] = place + 1;
    low[2 * place] = Math.floor(choice / topK);
    sorted[place] = gates[choice] as number;
    places[choice] = place;
  }
  return { used, sizes, rows, gates: sorted, places };
}
