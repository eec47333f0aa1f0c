import { type DecoderLayer, skipRuleOf, sparedTokens, tokenImportance } from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import type { PlannedExperts } from "./planned-layers.js";
import type { Piece } from "./units.js";

/** A unit behind the attention of a layer, whose rows are the tokens of its pieces. */
export interface AttendedUnit {
  readonly pieces: readonly Piece[];
  /** Input of the MoE block, [N, hidden]. */
  readonly normed: Tensor;
  /** [pieces, positions], what the unit's tokens give each position, summed over heads. */
  readonly received: Tensor | undefined;
}

/** Share of the tokens that a layer spares; 0 for none. */
export function spareShare({ feedForward }: DecoderLayer, experts: PlannedExperts | undefined): number {
  if (feedForward.kind !== "moe" || !experts) return 0;
  return skipRuleOf(feedForward.router, experts.plan)?.spare ?? 0;
}

/**
 * The rows that skip nothing, 1 for each, unit by unit: `share` of the tokens of every sequence that runs several at
 * once, by what they receive from all of the sequence's tokens in this run.
 * @param units all those that the sequences are cut into
 */
export function sparedRows(
  units: readonly AttendedUnit[],
  { attention }: DecoderLayer,
  share: number,
): Uint8Array[] {
  const heads = attention.kind === "other" ? 0 : attention.heads;
  const hidden = units[0]?.normed.dims[1] as number;
  const sequences = new Map<number, { readonly received: Float64Array; readonly input: Float32Array }>();
  const lengths = new Map<number, number>();
  for (const { sequence, end } of units.flatMap(({ pieces }) => pieces)) {
    lengths.set(sequence, Math.max(end, lengths.get(sequence) ?? 0));
  }
  for (const { pieces, normed, received } of units) {
    if (!received) continue;
    const positions = received.dims[1] as number;
    let row = 0;
    for (const [p, { sequence, begin, end, past }] of pieces.entries()) {
      const length = lengths.get(sequence) as number;
      const sums = sequences.get(sequence) ?? {
        received: new Float64Array(length),
        input: new Float32Array(length * hidden),
      };
      sequences.set(sequence, sums);
      // Tokens of earlier runs lie before the first one of this run.
      const first = p * positions + past - begin;
      for (let i = 0; i < end; i++) {
        sums.received[i] = (sums.received[i] as number) + (received.data[first + i] as number);
      }
      const values = normed.data as Float32Array;
      sums.input.set(values.subarray(row * hidden, (row + end - begin) * hidden), begin * hidden);
      row += end - begin;
    }
  }
  const spared = new Map(
    Array.from(sequences, ([sequence, { received, input }]) => [
      sequence,
      received.length > 1
        ? sparedTokens(tokenImportance(received, heads, input), share)
        : new Uint8Array(received.length),
    ]),
  );
  return units.map(({ pieces }) => {
    const parts = pieces.map(({ sequence, begin, end }) => spared.get(sequence)?.subarray(begin, end));
    return Uint8Array.from(parts.flatMap((part) => Array.from(part ?? [])));
  });
}
