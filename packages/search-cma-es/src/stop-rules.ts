import type { CovarianceModel } from "./covariance.js";

export interface SearchState {
  readonly generation: number;
  readonly mean: Float64Array;
  readonly sigma: number;
  readonly path: Float64Array;
  readonly covariance: CovarianceModel;
}

/** Largest condition number of the covariance that double precision carries. */
const conditionLimit = 1e14;
/** Growth of the longest axis beyond which the first step was far too short, or the search diverges. */
const growthLimit = 1e4;
/** Fitness differences that mean nothing. */
const fitnessTolerance = 1e-12;

/** When a run of the CMA-ES has nothing more to find: the tutorial (arXiv 1604.00772), appendix B.3. */
export class StopRules {
  readonly #sigma: number;
  readonly #tolerance: number;
  /** Generations that the rules on fitness look at. */
  readonly #window: number;
  readonly #stagnation: number;
  readonly #best: number[] = [];
  readonly #median: number[] = [];
  #spread = Number.POSITIVE_INFINITY;

  constructor(dimension: number, population: number, sigma: number, tolerance: number) {
    this.#sigma = sigma;
    this.#tolerance = tolerance;
    this.#window = 10 + Math.ceil((30 * dimension) / population);
    this.#stagnation = 120 + (30 * dimension) / population;
  }

  /** @param fitness of a generation, best first, without failures */
  record(fitness: readonly number[]): void {
    this.#best.push(fitness[0] as number);
    this.#median.push(fitness[Math.floor(fitness.length / 2)] as number);
    this.#spread = (fitness[0] as number) - (fitness.at(-1) as number);
  }

  check({ generation, mean, sigma, path, covariance }: SearchState): string | undefined {
    const { eigenvalues } = covariance;
    let [least, most] = [Number.POSITIVE_INFINITY, 0];
    for (const value of eigenvalues) {
      if (value < least) least = value;
      if (value > most) most = value;
    }
    const deviations = mean.map((_, i) => sigma * Math.sqrt(covariance.variance(i)));
    if (!Number.isFinite(most * sigma) || most > conditionLimit * least) return "condition";
    if (sigma * Math.sqrt(most) > growthLimit * this.#sigma) return "growth";
    if (
      deviations.every(
        (value, i) => value < this.#tolerance && sigma * Math.abs(path[i] as number) < this.#tolerance,
      )
    ) {
      return "step";
    }
    if (deviations.some((value, i) => mean[i] === (mean[i] as number) + 0.2 * value)) return "coordinate";
    const axis = covariance.axis(generation % mean.length);
    if (mean.every((value, i) => value === value + 0.1 * sigma * (axis[i] as number))) return "axis";
    if (this.#best.length >= this.#window) {
      const recent = this.#best.slice(-this.#window);
      if (Math.max(...recent) - Math.min(...recent) + this.#spread < fitnessTolerance) return "fitness";
    }
    return this.#stagnates() ? "stagnation" : undefined;
  }

  /** True when neither the best nor the median is better in the last 30 % of a long row of generations than in its first 30 %. */
  #stagnates(): boolean {
    const length = Math.ceil(Math.max(this.#stagnation, Math.min(20_000, 0.2 * this.#best.length)));
    if (this.#best.length < length) return false;
    const part = Math.ceil(0.3 * length);
    return [this.#best, this.#median].every((history) => {
      const recent = history.slice(-length);
      return median(recent.slice(-part)) <= median(recent.slice(0, part));
    });
  }
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] as number;
}
