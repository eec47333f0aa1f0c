import type { Norm } from "./weights.js";

/**
 * Normalises each of the first `rows` rows of `size` values, from x into y (which may be x), with sums in float64:
 * `rms` is `x / sqrt(mean(x²) + epsilon)`, `layer` takes the mean off first; then times weight, plus bias.
 */
export function normalize(x: Float32Array, rows: number, size: number, norm: Norm, y: Float32Array): void {
  const { kind, weight, bias, epsilon } = norm;
  for (let row = 0; row < rows; row++) {
    const at = row * size;
    let mean = 0;
    if (kind === "layer") {
      for (let i = 0; i < size; i++) mean += x[at + i] as number;
      mean /= size;
    }
    let squares = 0;
    for (let i = 0; i < size; i++) squares += ((x[at + i] as number) - mean) ** 2;
    const factor = 1 / Math.sqrt(squares / size + epsilon);
    for (let i = 0; i < size; i++) {
      const value = ((x[at + i] as number) - mean) * factor;
      y[at + i] = value * (weight ? (weight[i] as number) : 1) + (bias ? (bias[i] as number) : 0);
    }
  }
}
