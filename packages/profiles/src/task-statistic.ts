import type { LayerStatistics } from "@coppice/core";

/**
 * What the router logits z [tokens, E] of the first MoE layer say of a task, as a vector of length 1:
 *
 * - `logit-gram`: ZᵀZ / T, [E (E + 1) / 2]: its upper triangle, row by row, other values than the diagonal times √2, so
 *   that the distance of two vectors is that of the matrices (Frobenius)
 * - `probability`: square roots of the mean softmax probabilities, [E], so that distances are Hellinger distances
 * - `top-logit`: Σ z / T over the tokens where z is the largest of all, [E]: TCESS of PreMoe (arXiv 2505.17639), one
 *   expert per token and no threshold
 *
 * Which of them finds tasks best is measured in the documentation.
 */
export const taskStatistics = ["logit-gram", "probability", "top-logit"] as const;
export type TaskStatistic = (typeof taskStatistics)[number];

/** Sums of router logits over tokens, as `LayerStatistics` has them. */
export type LogitSums = Pick<LayerStatistics, "tokens" | "probability" | "topLogit" | "logitGram">;

/** The statistic of a layer with E experts; zeros where all sums are. */
export function statisticVector(statistic: TaskStatistic, sums: LogitSums): Float32Array {
  const values = rawVector(statistic, sums);
  const norm = Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
  return Float32Array.from(values, (value) => (norm === 0 ? 0 : value / norm));
}

/** Values of the statistic of a layer with so many experts. */
export function statisticLength(statistic: TaskStatistic, experts: number): number {
  return statistic === "logit-gram" ? (experts * (experts + 1)) / 2 : experts;
}

/** Squared distance of two vectors of equal length. */
export function squaredDistance(a: Float32Array, b: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += ((a[i] as number) - (b[i] as number)) ** 2;
  return sum;
}

function rawVector(statistic: TaskStatistic, sums: LogitSums): Float64Array {
  if (statistic === "top-logit") return sums.topLogit;
  if (statistic === "probability") return sums.probability.map(Math.sqrt);
  const experts = sums.probability.length;
  const values = new Float64Array(statisticLength(statistic, experts));
  let at = 0;
  for (let i = 0; i < experts; i++) {
    for (let j = i; j < experts; j++) {
      values[at++] = (i === j ? 1 : Math.SQRT2) * (sums.logitGram[i * experts + j] as number);
    }
  }
  return values;
}
