import type { Rng } from "@coppice/core";
import { type CmaConstants, cmaConstants } from "./constants.js";
import { CovarianceMatrix, type CovarianceModel, DiagonalCovariance } from "./covariance.js";
import { StopRules } from "./stop-rules.js";

export interface CovarianceAdaptationOptions {
  readonly mean: ArrayLike<number>;
  /** First standard deviation of every coordinate. */
  readonly sigma: number;
  readonly rng: Rng;
  /** Solutions per generation, λ; default `defaultPopulation`. */
  readonly population?: number;
  /** `diagonal`: sep-CMA-ES, linear in the dimension. */
  readonly covariance: "full" | "diagonal";
  /** The search has converged when no coordinate varies by more. Default 1e-12 times `sigma`. */
  readonly tolerance?: number;
}

/** λ = 4 + ⌊3 ln N⌋. */
export function defaultPopulation(dimension: number): number {
  return 4 + Math.floor(3 * Math.log(dimension));
}

/**
 * The (μ/μ_w, λ)-CMA-ES with active covariance adaptation: N. Hansen, *The CMA Evolution Strategy: A Tutorial* (arXiv
 * 1604.00772), figure 6 and table 1; its diagonal form is that of R. Ros and N. Hansen, *A Simple Modification in CMA-ES
 * Achieving Linear Time and Space Complexity* (PPSN 2008). Maximises: the larger a fitness, the better.
 *
 * Solutions of fitness -Infinity count as not drawn; a generation of nothing else halves the step.
 */
export class CovarianceAdaptation {
  readonly dimension: number;
  readonly population: number;
  readonly #rng: Rng;
  readonly #diagonal: boolean;
  readonly #constants: CmaConstants;
  readonly #covariance: CovarianceModel;
  readonly #rules: StopRules;
  readonly #mean: Float64Array;
  readonly #sigmaPath: Float64Array;
  readonly #covariancePath: Float64Array;
  #sigma: number;
  #generation = 0;
  /** Steps of the last sample: x = mean + σ · step. */
  #steps: Float64Array[] = [];

  constructor(options: CovarianceAdaptationOptions) {
    const { mean, sigma, rng, covariance } = options;
    this.#mean = Float64Array.from(mean);
    this.dimension = this.#mean.length;
    this.population = options.population ?? defaultPopulation(this.dimension);
    this.#rng = rng;
    this.#sigma = sigma;
    const diagonal = covariance === "diagonal";
    this.#diagonal = diagonal;
    this.#constants = cmaConstants(this.dimension, this.population, diagonal);
    this.#covariance = diagonal
      ? new DiagonalCovariance(this.dimension)
      : new CovarianceMatrix(this.dimension, this.#constants);
    this.#sigmaPath = new Float64Array(this.dimension);
    this.#covariancePath = new Float64Array(this.dimension);
    this.#rules = new StopRules(this.dimension, this.population, sigma, options.tolerance ?? 1e-12 * sigma);
  }

  get mean(): Float64Array {
    return Float64Array.from(this.#mean);
  }

  get sigma(): number {
    return this.#sigma;
  }

  /** Why another generation makes no sense; undefined as long as it does. */
  get stopped(): string | undefined {
    return this.#rules.check({
      generation: this.#generation,
      mean: this.#mean,
      sigma: this.#sigma,
      path: this.#covariancePath,
      covariance: this.#covariance,
    });
  }

  /** The next generation. */
  sample(): Float64Array[] {
    this.#steps = Array.from({ length: this.population }, () => {
      const normal = Float64Array.from({ length: this.dimension }, () => this.#rng.normal());
      return this.#covariance.stretch(normal);
    });
    return this.#steps.map((step) => step.map((value, i) => (this.#mean[i] as number) + this.#sigma * value));
  }

  /** @param fitness of every solution of the last sample, in its order */
  update(fitness: readonly number[]): void {
    const order = [...fitness.keys()].sort((a, b) => compare(fitness[b] as number, fitness[a] as number));
    this.#generation++;
    const successes = fitness.filter((value) => value > Number.NEGATIVE_INFINITY).length;
    if (successes === 0) {
      this.#sigma /= 2;
      return;
    }
    this.#adapt(order.slice(0, successes).map((i) => this.#steps[i] as Float64Array));
    const sorted = order.map((i) => fitness[i] as number);
    // A plateau: longer steps find its end (tutorial, appendix C).
    const { sigmaRate, sigmaDamping } = this.#constants;
    if (sorted[0] === sorted[Math.ceil(0.7 * this.population) - 1]) {
      this.#sigma *= Math.exp(0.2 + sigmaRate / sigmaDamping);
    }
    this.#rules.record(sorted.slice(0, successes));
  }

  /** @param ranked steps that did not fail, the best first */
  #adapt(ranked: readonly Float64Array[]): void {
    const { dimension } = this;
    // What failed teaches nothing: the others are a smaller generation.
    const c =
      ranked.length === this.population
        ? this.#constants
        : cmaConstants(dimension, Math.max(2, ranked.length), this.#diagonal);
    const effective = 1 / c.weights.reduce((sum, weight) => sum + Math.max(0, weight) ** 2, 0);
    const step = new Float64Array(dimension);
    ranked.forEach((y, rank) => {
      const weight = Math.max(0, c.weights[rank] as number);
      for (let i = 0; i < dimension; i++) step[i] = (step[i] as number) + weight * (y[i] as number);
    });
    for (let i = 0; i < dimension; i++) {
      this.#mean[i] = (this.#mean[i] as number) + this.#sigma * (step[i] as number);
    }

    blend(
      this.#sigmaPath,
      1 - c.sigmaRate,
      this.#covariance.whiten(step),
      Math.sqrt(c.sigmaRate * (2 - c.sigmaRate) * effective),
    );
    const length = norm(this.#sigmaPath);
    const stationary = Math.sqrt(1 - (1 - c.sigmaRate) ** (2 * this.#generation));
    // Stalls the covariance path while steps are far too short.
    const stalls = length / stationary >= (1.4 + 2 / (dimension + 1)) * c.expectedNorm;
    blend(
      this.#covariancePath,
      1 - c.pathRate,
      step,
      stalls ? 0 : Math.sqrt(c.pathRate * (2 - c.pathRate) * effective),
    );

    const stepWeights = ranked.map((y, rank) => {
      const weight = c.weights[rank] as number;
      if (weight >= 0) return weight;
      const size = norm(this.#covariance.whiten(y));
      return size > 0 ? (weight * dimension) / size ** 2 : 0;
    });
    const sum = ranked.reduce((total, _, rank) => total + (c.weights[rank] as number), 0);
    const lost = stalls ? c.oneRate * c.pathRate * (2 - c.pathRate) : 0;
    this.#covariance.update({
      decay: 1 + lost - c.oneRate - c.muRate * sum,
      path: this.#covariancePath,
      pathWeight: c.oneRate,
      steps: ranked,
      stepWeights: stepWeights.map((weight) => c.muRate * weight),
    });
    this.#sigma *= Math.exp(Math.min(1, (c.sigmaRate / c.sigmaDamping) * (length / c.expectedNorm - 1)));
  }
}

/** -Infinity equals itself, which subtraction would turn into NaN. */
function compare(a: number, b: number): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function blend(target: Float64Array, keep: number, added: Float64Array, weight: number): void {
  for (let i = 0; i < target.length; i++) {
    target[i] = keep * (target[i] as number) + weight * (added[i] as number);
  }
}

function norm(vector: Float64Array): number {
  return Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
}
