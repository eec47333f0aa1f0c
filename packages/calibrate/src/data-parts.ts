import type { SampledToken } from "./token-sample.js";

/** Sequences that run together. */
export interface Batch {
  readonly sequences: readonly Int32Array[];
  readonly tokens: number;
  /** [tokens], row of each token in the sample of the batch's part, -1 for those not in it; absent: none is. */
  readonly sampled?: Int32Array;
}

/** A part of the data that is summed by itself. */
export interface Part {
  readonly index: number;
  readonly batches: readonly Batch[];
  readonly tokens: number;
  /** Those of the whole sample that stand here, by ascending priority. */
  readonly sample: readonly SampledToken[];
}

/**
 * Parts of about equal numbers of tokens, each cut into batches. They do not depend on how many runners share them, so
 * neither do sums over them. Parts without tokens are left out.
 */
export function cutParts(
  sequences: readonly Int32Array[],
  count: number,
  tokenBudget: number,
  sample: readonly SampledToken[],
): Part[] {
  const ranges = partRanges(
    sequences.map(({ length }) => length),
    count,
  );
  const filled = ranges.filter(([begin, end]) => begin < end);
  return filled.map(([begin, end], index) => {
    const own = sample.filter(({ sequence }) => sequence >= begin && sequence < end);
    const batches = cutBatches(sequences, [begin, end], tokenBudget, own);
    return { index, batches, tokens: batches.reduce((sum, { tokens }) => sum + tokens, 0), sample: own };
  });
}

/** Consecutive ranges [begin, end) of about equal sums of `lengths`; some may be empty. */
export function partRanges(lengths: readonly number[], count: number): [begin: number, end: number][] {
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const ranges: [number, number][] = [];
  let before = 0;
  let at = 0;
  for (let part = 0; part < count; part++) {
    const begin = at;
    while (at < lengths.length) {
      const length = lengths[at] as number;
      // A sequence belongs to the part that its middle lies in.
      if (part < count - 1 && Math.floor(((before + length / 2) / total) * count) > part) break;
      before += length;
      at++;
    }
    ranges.push([begin, at]);
  }
  return ranges;
}

/** Consecutive sequences of at most `budget` tokens together. */
function cutBatches(
  sequences: readonly Int32Array[],
  [begin, end]: readonly [number, number],
  budget: number,
  sample: readonly SampledToken[],
): Batch[] {
  const batches: Batch[] = [];
  const close = (from: number, to: number, tokens: number) => {
    const sampled = sampledRows(sequences, [from, to], sample);
    batches.push({ sequences: sequences.slice(from, to), tokens, ...(sampled && { sampled }) });
  };
  let from = begin;
  let tokens = 0;
  for (let i = begin; i < end; i++) {
    const { length } = sequences[i] as Int32Array;
    if (i > from && tokens + length > budget) {
      close(from, i, tokens);
      from = i;
      tokens = 0;
    }
    tokens += length;
  }
  close(from, end, tokens);
  return batches;
}

/** Row in the part's sample of every token of these sequences; undefined when none is in it. */
function sampledRows(
  sequences: readonly Int32Array[],
  [from, to]: readonly [number, number],
  sample: readonly SampledToken[],
): Int32Array | undefined {
  if (!sample.some(({ sequence }) => sequence >= from && sequence < to)) return undefined;
  const starts: number[] = [];
  let tokens = 0;
  for (const { length } of sequences.slice(from, to)) {
    starts.push(tokens);
    tokens += length;
  }
  const rows = new Int32Array(tokens).fill(-1);
  sample.forEach(({ sequence, position }, row) => {
    const start = starts[sequence - from];
    if (start !== undefined) rows[start + position] = row;
  });
  return rows;
}
