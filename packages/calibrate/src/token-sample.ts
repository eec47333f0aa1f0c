import {
  checkWholeNumber,
  type LayerSample,
  type SampleField,
  sampleFields,
  type TokenSample,
} from "@coppice/core";
import { tokenPriorities } from "./token-priority.js";

/** Single tokens to keep beside the sums. */
export interface SampleOptions {
  /** Most tokens. */
  readonly limit: number;
  /**
   * What to keep of them beside router logits: `grams` and `units` run all experts on these tokens. Per token, layer and
   * 4 bytes: experts values of logits, hidden of `inputs`, experts² of `grams`, experts x width of `units`.
   * @default nothing
   */
  readonly with?: readonly SampleField[];
}

/** One token of a sample. */
export interface SampledToken {
  /** Index of its sequence in the data. */
  readonly sequence: number;
  readonly position: number;
  readonly priority: number;
}

/** More tokens than this are no sample: their values would fill any memory. */
const mostTokens = 1_000_000;

/** Fields of a sample in file order, logits included. @throws COPPICE_USAGE */
export function checkedSample(options: SampleOptions | undefined): readonly SampleField[] {
  if (!options) return [];
  checkWholeNumber("the number of sampled tokens", options.limit, mostTokens);
  return sampleFields.filter((field) => field === "logits" || options.with?.includes(field));
}

/**
 * The `limit` tokens of the lowest priorities, by ascending priority; all tokens, where there are no more. Tokens of
 * equal sequences tie, the first ones come first.
 */
export function selectSample(sequences: readonly Int32Array[], limit: number): SampledToken[] {
  const total = sequences.reduce((sum, { length }) => sum + length, 0);
  const priorities = new Float64Array(total);
  let at = 0;
  for (const sequence of sequences) {
    priorities.set(tokenPriorities(sequence), at);
    at += sequence.length;
  }
  const most = total > limit ? (priorities.slice().sort()[limit - 1] as number) : Number.POSITIVE_INFINITY;
  const tokens: SampledToken[] = [];
  at = 0;
  sequences.forEach(({ length }, sequence) => {
    for (let position = 0; position < length; position++) {
      const priority = priorities[at++] as number;
      if (priority <= most) tokens.push({ sequence, position, priority });
    }
  });
  // The sort is stable.
  return tokens.sort((a, b) => a.priority - b.priority).slice(0, limit);
}

/** Where each token of a merged sample comes from. */
export interface MergedSample {
  readonly sample: TokenSample;
  /** Tokens of the first of the two, and of the second. */
  readonly sizes: readonly [number, number];
  /** Row in the first, or, from its size on, in the second. */
  readonly rows: Int32Array;
}

/** The sample of the union of two sets of data. Where limits differ, the smaller one is all that both can tell. */
export function mergeSamples(a: TokenSample, b: TokenSample): MergedSample {
  const limit = Math.min(a.limit, b.limit);
  const sizes = [a.priorities.length, b.priorities.length] as const;
  const joined = new Float64Array(sizes[0] + sizes[1]);
  joined.set(a.priorities);
  joined.set(b.priorities, sizes[0]);
  const rows = Int32Array.from(joined.keys())
    .sort((x, y) => (joined[x] as number) - (joined[y] as number) || x - y)
    .slice(0, limit);
  const priorities = Float64Array.from(rows, (row) => joined[row] as number);
  return { sample: { limit, priorities }, sizes, rows };
}

/** The rows of a merged sample of what one layer shows. */
export function pickSample({ sizes, rows }: MergedSample, a: LayerSample, b: LayerSample): LayerSample {
  const [first, second] = sizes;
  const picked = sampleFields.flatMap((field) => {
    const [one, other] = [a[field], b[field]];
    if (!one || !other) return [];
    const values = (one.length + other.length) / (first + second || 1);
    const out = new Float32Array(rows.length * values);
    rows.forEach((row, i) => {
      const [from, at] = row < first ? [one, row] : [other, row - first];
      out.set(from.subarray(at * values, (at + 1) * values), i * values);
    });
    return [[field, out] as const];
  });
  return Object.fromEntries(picked) as unknown as LayerSample;
}
