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
  const gram = rows.map((a, i) => Float64Array.from(rows.slice(0, i + 1), (b) => dot(a, b)));
  gram.forEach((row, i) => {
    row[i] = (row[i] as number) + penalty;
  });
  const dual = solveCholesky(
    gram,
    ranked.map(({ fitness }, i) => Math.sqrt(weights[i] as number) * (fitness - target)),
  );
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

/** Solves M x = b for a symmetric positive definite M, given as its lower rows, which are overwritten. */
export function solveCholesky(lower: Float64Array[], b: readonly number[]): Float64Array {
  const n = lower.length;
  for (let i = 0; i < n; i++) {
    const row = lower[i] as Float64Array;
    for (let j = 0; j <= i; j++) {
      const other = lower[j] as Float64Array;
      let sum = row[j] as number;
      for (let k = 0; k < j; k++) sum -= (row[k] as number) * (other[k] as number);
      row[j] = i === j ? Math.sqrt(sum) : sum / (other[j] as number);
    }
  }
  const x = Float64Array.from(b);
  for (let i = 0; i < n; i++) {
    const row = lower[i] as Float64Array;
    let sum = x[i] as number;
    for (let k = 0; k < i; k++) sum -= (row[k] as number) * (x[k] as number);
    x[i] = sum / (row[i] as number);
  }
  for (let i = n - 1; i >= 0; i--) {
    let sum = x[i] as number;
    for (let k = i + 1; k < n; k++) sum -= (lower[k]?.[i] as number) * (x[k] as number);
    x[i] = sum / (lower[i]?.[i] as number);
  }
  return x;
}
