import type { Routing, SkipRule } from "@coppice/core";

/**
 * What decides, by a rule, whether a choice of a token runs, for all choices but the token's largest: for `ratio` its gate
 * weight over the largest, and it runs when that is at least the threshold; for `top-p` the share of the larger ones in the sum,
 * and it runs when that is below the threshold.
 * @param routing whose gate weights are neither divided nor scaled, and of which nothing is skipped
 * @returns [tokens (k - 1)]
 */
export function skipScores(rule: SkipRule["rule"], { topK, gates }: Routing): Float64Array {
  const tokens = gates.length / topK;
  const scores = new Float64Array(tokens * (topK - 1));
  for (let token = 0; token < tokens; token++) {
    const sorted = Array.from(gates.subarray(token * topK, (token + 1) * topK)).sort((a, b) => b - a);
    const largest = sorted[0] as number;
    const total = sorted.reduce((sum, gate) => sum + gate, 0);
    let before = 0;
    for (let i = 1; i < topK; i++) {
      before += sorted[i - 1] as number;
      const score = rule === "ratio" ? (sorted[i] as number) / largest : before / total;
      // A token whose gate weights are all 0 runs what it chose.
      scores[token * (topK - 1) + i - 1] = Number.isFinite(score) ? score : rule === "ratio" ? 1 : 0;
    }
  }
  return scores;
}

/**
 * The threshold from 0 to 1 under which tokens run `target` experts on average, as nearly as the scores allow: the quantile of
 * the scores, halfway between two of them. Equal scores are on one side.
 * @param scores of `skipScores`
 * @param topK k
 */
export function quantileThreshold(
  rule: SkipRule["rule"],
  scores: Float64Array,
  topK: number,
  target: number,
): number {
  if (scores.length === 0) return rule === "ratio" ? 0 : 1;
  const sorted = scores.slice().sort();
  const wanted = ((target - 1) / (topK - 1)) * sorted.length;
  // How many of the sorted scores lie below the threshold.
  const place = Math.round(rule === "ratio" ? sorted.length - wanted : wanted);
  const between = (at: number) => {
    if (at <= 0) return 0;
    if (at >= sorted.length) return 1;
    return ((sorted[at - 1] as number) + (sorted[at] as number)) / 2;
  };
  // Among equal scores the nearer end of their run.
  let [low, high] = [place, place];
  while (low > 0 && low < sorted.length && sorted[low - 1] === sorted[low]) low--;
  while (high > 0 && high < sorted.length && sorted[high - 1] === sorted[high]) high++;
  return between(place - low <= high - place ? low : high);
}

export function median(values: Float64Array): number {
  const sorted = values.slice().sort();
  const middle = sorted.length >> 1;
  if (sorted.length % 2 === 1) return sorted[middle] as number;
  return ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}
