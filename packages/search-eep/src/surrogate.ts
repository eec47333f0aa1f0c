import { factorCholesky, solveCholesky } from "@coppice/core";
import type { Subsets } from "./genome.js";
import type { Layout } from "./layout.js";

/** Predicts the fitness of subsets, up to a constant. */
export type Surrogate = (subsets: Subsets) => number;

/** Ridge penalty of the surrogate, in units of one evaluated plan. */
const penalty = 1;

/** Plans matter by rank: weight e^(-2 rank / n), so that the model is good where the search goes on. */
const rankDecay = 2;

/** Most plans that the surrogate is fitted to, the best ones: the time of a fit grows with their cube. */
const mostPlans = 512;

/**
 * Fits fitness ~ sum over groups of the values of the kept experts, by weighted ridge regression on the plans that
 * were evaluated. `all` is best first and holds at least one plan, all with finite fitness.
 *
 * Solved in the dual, (A Aᵀ + λI) with one row per plan, because plans are fewer than experts in large models.
 */
export function fitSurrogate(
  layout: Layout,
  all: readonly { subsets: Subsets; fitness: number }[],
): Surrogate {
  const ranked = all.slice(0, mostPlans);
  const offsets: number[] = [];
  let units = 0;
  for (const group of layout.groups) {
    offsets.push(units);
    units += group.experts;
  }
  const n = ranked.length;
  const weights = Float64Array.from(ranked, (_, rank) => Math.exp((-rankDecay * rank) / n));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const mean = new Float64Array(units);
  let target = 0;
  ranked.forEach(({ subsets, fitness }, i) => {
    const share = (weights[i] as number) / total;
    target += share * fitness;
    eachUnit(subsets, offsets, (unit) => {
      mean[unit] = (mean[unit] as number) + share;
    });
  });
  const rows = ranked.map(({ subsets }, i) => {
    const scale = Math.sqrt(weights[i] as number);
    const row = Float64Array.from(mean, (value) => -value * scale);
    eachUnit(subsets, offsets, (unit) => {
      row[unit] = (row[unit] as number) + scale;
    });
    return row;
  });
  const gram = new Float64Array(n * n);
  rows.forEach((a, i) => {
    for (let j = 0; j <= i; j++) gram[i * n + j] = dot(a, rows[j] as Float64Array);
    gram[i * n + i] = (gram[i * n + i] as number) + penalty;
  });
  // Positive definite: the penalty is added to a matrix of products.
  factorCholesky(gram, n);
  const dual = Float64Array.from(
    ranked,
    ({ fitness }, i) => Math.sqrt(weights[i] as number) * (fitness - target),
  );
  solveCholesky(gram, n, dual);
  const values = new Float64Array(units);
  rows.forEach((row, i) => {
    for (let unit = 0; unit < units; unit++)
      values[unit] = (values[unit] as number) + (row[unit] as number) * (dual[i] as number);
  });
  return (subsets) => {
    let sum = 0;
    eachUnit(subsets, offsets, (unit) => {
      sum += values[unit] as number;
    });
    return sum;
  };
}

function eachUnit(subsets: Subsets, offsets: readonly number[], visit: (unit: number) => void): void {
  subsets.forEach((subset, g) => {
    for (const expert of subset) visit((offsets[g] as number) + expert);
  });
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] as number) * (b[i] as number);
  return sum;
}
