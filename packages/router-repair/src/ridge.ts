import { factorCholesky, solveCholesky } from "@coppice/core";

/**
 * A weighted ridge regression with many right-hand sides, in float64: the B [n, H] that minimises
 *
 *     Σ_t w_t ‖B x_t - y_t‖² + λ m ‖B‖²,  m the mean of the diagonal of Σ_t w_t x_t x_tᵀ
 *
 * so that λ means the same whatever the size of x and w. With no more features than tokens it is
 * B = Yᵀ W X (Xᵀ W X + λ m I)⁻¹, else by the same identity Yᵀ V (V X Xᵀ V + λ m I)⁻¹ V X, V = W^½: the matrix that is
 * factored is as large as the smaller of the two numbers.
 */
export class Ridge {
  readonly #inputs: Float64Array;
  readonly #tokens: number;
  readonly #features: number;
  readonly #isDual: boolean;
  /** X Xᵀ [S, S], which does not depend on the weights; only for the dual form. */
  readonly #kernel: Float64Array | undefined;

  /** @param inputs X, [S, H] */
  constructor(inputs: Float64Array, features: number) {
    this.#inputs = inputs;
    this.#features = features;
    this.#tokens = inputs.length / features;
    this.#isDual = this.#tokens < features;
    if (this.#isDual) this.#kernel = products(inputs, this.#tokens, features);
  }

  /**
   * @param targets Y, [S, n]
   * @param weights [S], at least 0, not all 0
   * @param penalties values of λ, above 0
   * @returns one B [n, H] per penalty
   */
  solve(targets: Float64Array, weights: Float64Array, penalties: readonly number[]): Float64Array[] {
    return this.#isDual
      ? this.#solveDual(targets, weights, penalties)
      : this.#solvePrimal(targets, weights, penalties);
  }

  #solvePrimal(targets: Float64Array, weights: Float64Array, penalties: readonly number[]): Float64Array[] {
    const [size, tokens] = [this.#features, this.#tokens];
    const count = targets.length / tokens;
    const gram = new Float64Array(size * size);
    const right = new Float64Array(count * size);
    for (let t = 0; t < tokens; t++) {
      const weight = weights[t] as number;
      if (weight === 0) continue;
      const x = this.#inputs.subarray(t * size, (t + 1) * size);
      for (let i = 0; i < size; i++) {
        const value = weight * (x[i] as number);
        const row = i * size;
        for (let j = 0; j <= i; j++) gram[row + j] = (gram[row + j] as number) + value * (x[j] as number);
      }
      for (let i = 0; i < count; i++) {
        const value = weight * (targets[t * count + i] as number);
        if (value === 0) continue;
        const row = i * size;
        for (let j = 0; j < size; j++) right[row + j] = (right[row + j] as number) + value * (x[j] as number);
      }
    }
    const mean = meanDiagonal(gram, size);
    return penalties.map((penalty) => {
      const found = right.slice();
      const factor = factorRidged(gram, size, penalty * mean);
      for (let i = 0; i < count; i++) solveCholesky(factor, size, found.subarray(i * size, (i + 1) * size));
      return found;
    });
  }

  #solveDual(targets: Float64Array, weights: Float64Array, penalties: readonly number[]): Float64Array[] {
    const [size, tokens] = [this.#features, this.#tokens];
    const count = targets.length / tokens;
    const roots = weights.map(Math.sqrt);
    const kernel = (this.#kernel as Float64Array).slice();
    for (let s = 0; s < tokens; s++) {
      for (let t = 0; t <= s; t++) {
        const at = s * tokens + t;
        kernel[at] = (kernel[at] as number) * (roots[s] as number) * (roots[t] as number);
      }
    }
    // The traces of both matrices are the same sum.
    const mean = (meanDiagonal(kernel, tokens) * tokens) / size;
    return penalties.map((penalty) => {
      const factor = factorRidged(kernel, tokens, penalty * mean);
      const found = new Float64Array(count * size);
      const column = new Float64Array(tokens);
      for (let i = 0; i < count; i++) {
        for (let t = 0; t < tokens; t++)
          column[t] = (roots[t] as number) * (targets[t * count + i] as number);
        solveCholesky(factor, tokens, column);
        for (let t = 0; t < tokens; t++) {
          const value = (column[t] as number) * (roots[t] as number);
          for (let j = 0; j < size; j++) {
            const at = i * size + j;
            found[at] = (found[at] as number) + value * (this.#inputs[t * size + j] as number);
          }
        }
      }
      return found;
    });
  }
}

/** The lower triangle of X Xᵀ. */
function products(rows: Float64Array, count: number, size: number): Float64Array {
  const out = new Float64Array(count * count);
  for (let s = 0; s < count; s++) {
    const a = rows.subarray(s * size, (s + 1) * size);
    for (let t = 0; t <= s; t++) {
      const start = t * size;
      let sum = 0;
      for (let i = 0; i < size; i++) sum += (a[i] as number) * (rows[start + i] as number);
      out[s * count + t] = sum;
    }
  }
  return out;
}

function meanDiagonal(matrix: Float64Array, size: number): number {
  let sum = 0;
  for (let i = 0; i < size; i++) sum += matrix[i * size + i] as number;
  return sum / size;
}

/** The factor of `matrix + ridge I`; more is added where rounding left it not positive definite. */
function factorRidged(matrix: Float64Array, size: number, ridge: number): Float64Array {
  for (let added = ridge; ; added = Math.max(added * 10, Number.MIN_VALUE)) {
    const factor = matrix.slice();
    for (let i = 0; i < size; i++) factor[i * size + i] = (factor[i * size + i] as number) + added;
    if (factorCholesky(factor, size)) return factor;
  }
}
