import type { CmaConstants } from "./constants.js";
import { symmetricEigen } from "./symmetric-eigen.js";

export interface CovarianceUpdate {
  /** Factor on the old covariance. */
  readonly decay: number;
  readonly path: Float64Array;
  readonly pathWeight: number;
  readonly steps: readonly Float64Array[];
  /** One per step; may be negative. */
  readonly stepWeights: readonly number[];
}

/** The covariance C of steps, and its square root in both directions. */
export interface CovarianceModel {
  /** C^½ z */
  stretch(normal: Float64Array): Float64Array;
  /** C^-½ y */
  whiten(step: Float64Array): Float64Array;
  update(update: CovarianceUpdate): void;
  /** Entry i of the diagonal of C. */
  variance(i: number): number;
  /** Eigenvalues of C, and the longest axes' lengths follow from them. */
  readonly eigenvalues: Float64Array;
  /** Axis i: eigenvector times the root of its eigenvalue. */
  axis(i: number): Float64Array;
}

/** sep-CMA-ES: variances only. */
export class DiagonalCovariance implements CovarianceModel {
  readonly #variances: Float64Array;

  constructor(dimension: number) {
    this.#variances = new Float64Array(dimension).fill(1);
  }

  get eigenvalues(): Float64Array {
    return this.#variances;
  }

  variance(i: number): number {
    return this.#variances[i] as number;
  }

  axis(i: number): Float64Array {
    const axis = new Float64Array(this.#variances.length);
    axis[i] = Math.sqrt(this.variance(i));
    return axis;
  }

  stretch(normal: Float64Array): Float64Array {
    return normal.map((value, i) => value * Math.sqrt(this.variance(i)));
  }

  whiten(step: Float64Array): Float64Array {
    return step.map((value, i) => value / Math.sqrt(this.variance(i)));
  }

  update({ decay, path, pathWeight, steps, stepWeights }: CovarianceUpdate): void {
    const variances = this.#variances;
    for (let i = 0; i < variances.length; i++) {
      let value = decay * (variances[i] as number) + pathWeight * (path[i] as number) ** 2;
      steps.forEach((step, k) => {
        value += (stepWeights[k] as number) * (step[i] as number) ** 2;
      });
      variances[i] = Math.max(value, Number.MIN_VALUE);
    }
  }
}

/** The full matrix; decomposed anew only when it has changed enough to matter, O(N²) per step on average. */
export class CovarianceMatrix implements CovarianceModel {
  readonly #dimension: number;
  readonly #matrix: Float64Array;
  /** Updates between two decompositions (tutorial, appendix B.2). */
  readonly #interval: number;
  #updates = 0;
  #vectors: Float64Array;
  #roots: Float64Array;

  constructor(dimension: number, { oneRate, muRate }: CmaConstants) {
    this.#dimension = dimension;
    this.#matrix = new Float64Array(dimension ** 2);
    for (let i = 0; i < dimension; i++) this.#matrix[i * dimension + i] = 1;
    this.#vectors = Float64Array.from(this.#matrix);
    this.#roots = new Float64Array(dimension).fill(1);
    this.#interval = Math.max(1, Math.floor(1 / (10 * dimension * (oneRate + muRate))));
  }

  get eigenvalues(): Float64Array {
    return this.#roots.map((root) => root ** 2);
  }

  variance(i: number): number {
    return this.#matrix[i * this.#dimension + i] as number;
  }

  axis(i: number): Float64Array {
    const root = this.#roots[i] as number;
    return Float64Array.from({ length: this.#dimension }, (_, k) => root * this.#vector(k, i));
  }

  stretch(normal: Float64Array): Float64Array {
    return this.#fromAxes(normal.map((value, i) => value * (this.#roots[i] as number)));
  }

  whiten(step: Float64Array): Float64Array {
    const along = Float64Array.from({ length: this.#dimension }, (_, i) => {
      let sum = 0;
      for (let k = 0; k < this.#dimension; k++) sum += this.#vector(k, i) * (step[k] as number);
      return sum / (this.#roots[i] as number);
    });
    return this.#fromAxes(along);
  }

  update({ decay, path, pathWeight, steps, stepWeights }: CovarianceUpdate): void {
    const matrix = this.#matrix;
    for (let i = 0; i < matrix.length; i++) matrix[i] = decay * (matrix[i] as number);
    addOuter(matrix, path, pathWeight);
    steps.forEach((step, k) => {
      addOuter(matrix, step, stepWeights[k] as number);
    });
    if (++this.#updates % this.#interval === 0) this.#decompose();
  }

  #decompose(): void {
    const { values, vectors } = symmetricEigen(this.#matrix, this.#dimension);
    this.#vectors = vectors;
    // Rounding may leave a tiny eigenvalue below 0; the stop rule on the condition number ends such a run.
    const least = Math.max(...values) * Number.EPSILON;
    this.#roots = values.map((value) => Math.sqrt(Math.max(value, least)));
  }

  #vector(row: number, column: number): number {
    return this.#vectors[row * this.#dimension + column] as number;
  }

  #fromAxes(along: Float64Array): Float64Array {
    return Float64Array.from({ length: this.#dimension }, (_, k) => {
      let sum = 0;
      for (let i = 0; i < this.#dimension; i++) sum += this.#vector(k, i) * (along[i] as number);
      return sum;
    });
  }
}

/** matrix ← matrix + weight · v vᵀ */
function addOuter(matrix: Float64Array, v: Float64Array, weight: number): void {
  const size = v.length;
  for (let i = 0; i < size; i++) {
    const scaled = weight * (v[i] as number);
    const row = i * size;
    for (let j = 0; j < size; j++) matrix[row + j] = (matrix[row + j] as number) + scaled * (v[j] as number);
  }
}
