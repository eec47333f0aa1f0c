import type { Norm } from "./weights.js";

/**
 * Root-mean-square norm of each of the first `rows` rows of `size` values, from x into y (which may be x):
 * `x / sqrt(mean(x²) + epsilon) * weight`.
 */
export function rmsNorm(x: Float32Array, rows: number, size: number, norm: Norm, y: Float32Array): void {
  const { weight, epsilon } = norm;
  for (let row = 0; row < rows; row++) {
    const at = row * size;
    let squares = 0;
    for (let i = 0; i < size; i++) squares += (x[at + i] as number) ** 2;
    const factor = 1 / Math.sqrt(squares / size + epsilon);
    for (let i = 0; i < size; i++) y[at + i] = (x[at + i] as number) * factor * (weight[i] as number);
  }
}
