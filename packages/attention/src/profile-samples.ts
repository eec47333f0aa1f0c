import { type AttentionSample, CoppiceError } from "@coppice/core";

/**
 * Samples by the length whose profile they belong to: the smallest of `lengths` that they do not exceed.
 * @throws COPPICE_USAGE for a sample that is too long or broken, and a length without samples
 */
export function samplesByLength(
  samples: readonly AttentionSample[] | undefined,
  lengths: readonly number[],
): readonly (readonly AttentionSample[])[] {
  const groups: AttentionSample[][] = lengths.map(() => []);
  for (const sample of samples ?? []) {
    const { tokens, responseFrom } = sample;
    if (tokens.length < 2 || !(responseFrom >= 0 && responseFrom < tokens.length)) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `a sample of ${tokens.length} tokens has its response from token ${responseFrom}; expected one inside of the text`,
      );
    }
    const group = groups[lengths.findIndex((length) => tokens.length <= length)];
    if (!group) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `a sample has ${tokens.length} tokens; the longest length of the profile is ${lengths.at(-1)}`,
      );
    }
    group.push(sample);
  }
  lengths.forEach((length, k) => {
    if (groups[k]?.length === 0) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `no sample has more than ${lengths[k - 1] ?? 0} and at most ${length} tokens`,
        { hint: "give texts of every length that is profiled, or other lengths" },
      );
    }
  });
  return groups;
}

/** Positions of one text that a profile looks at, and how much each counts. */
export interface ProfileRows {
  /** [S], ascending */
  readonly positions: Int32Array;
  /** [S] */
  readonly weights: Float64Array;
}

/**
 * Up to `count` positions: half of them before tokens of the response, which count 1 together, the others from equal parts of the
 * prompt, which count `promptWeight` together. Of a text without a prompt all are from equal parts.
 */
export function profileRows(
  { tokens, responseFrom }: AttentionSample,
  count: number,
  promptWeight: number,
): ProfileRows {
  const answer = spread(Math.max(0, responseFrom - 1), tokens.length - 1, count);
  if (responseFrom < 2) return weighted([[answer, 1]]);
  const half = answer.length <= count / 2 ? answer : spread(responseFrom - 1, tokens.length - 1, count / 2);
  const prompt = promptWeight > 0 ? spread(0, responseFrom - 1, count - half.length) : [];
  return weighted([
    [prompt, promptWeight],
    [half, 1],
  ]);
}

/** At most `count` whole numbers of `from` to `to`, without `to`, one of the middle of each of equal parts. */
export function spread(from: number, to: number, count: number): number[] {
  const size = to - from;
  const parts = Math.max(1, Math.min(size, Math.floor(count)));
  return Array.from({ length: parts }, (_, i) => from + Math.floor(((i + 0.5) * size) / parts));
}

function weighted(parts: readonly (readonly [positions: readonly number[], weight: number])[]): ProfileRows {
  return {
    positions: Int32Array.from(parts.flatMap(([positions]) => positions)),
    weights: Float64Array.from(
      parts.flatMap(([positions, weight]) => positions.map(() => weight / positions.length)),
    ),
  };
}
