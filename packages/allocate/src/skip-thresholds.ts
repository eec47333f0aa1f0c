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

/** Scores that differ by less may be equal but for rounding, and are on one side of every threshold. */
const resolution = 1e-9;

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
  const sorted = scores.slice().sort();
  const count = sorted.length;
  const wanted = ((target - 1) / (topK - 1)) * count;
  let best = { threshold: 0, miss: Number.POSITIVE_INFINITY };
  for (let below = 0; below <= count; below++) {
    const [last, next] = [
      below === 0 ? 0 : (sorted[below - 1] as number),
      below === count ? 1 : (sorted[below] as number),
    ];
    // Nothing lies below 0, and what is 1 does not lie below 1.
    if (below > 0 && next - last < resolution) continue;
    const threshold = below === 0 ? 0 : below === count ? 1 : (last + next) / 2;
    const miss = Math.abs((rule === "ratio" ? count - below : below) - wanted);
    if (miss < best.miss) best = { threshold, miss };
  }
  return best.threshold;
}

export function median(values: Float64Array): number {
  const sorted = values.slice().sort();
  const middle = sorted.length >> 1;
  if (sorted.length % 2 === 1) return sorted[middle] as number;
  return ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}
