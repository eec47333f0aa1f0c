/** Vectors and their formulas in float64, for the slow model. */
export type Vector = number[];

/** `matrix · x + bias`, matrix row by row. */
export function product(matrix: ArrayLike<number>, x: Vector, bias?: ArrayLike<number>): Vector {
  return range(0, matrix.length / x.length).map((row) => {
    let sum = bias?.[row] ?? 0;
    for (let i = 0; i < x.length; i++) sum += (matrix[row * x.length + i] as number) * (x[i] as number);
    return sum;
  });
}

export function softmax(x: readonly number[]): Vector {
  const max = Math.max(...x);
  const parts = x.map((value) => Math.exp(value - max));
  const sum = total(parts);
  return parts.map((part) => part / sum);
}

export function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

export function inner(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, i) => sum + value * (b[i] as number), 0);
}

export function plus(a: Vector, b: Vector): Vector {
  return a.map((value, i) => value + (b[i] as number));
}

export function times(factor: number, x: readonly number[]): Vector {
  return x.map((value) => factor * value);
}

export function total(x: readonly number[]): number {
  return x.reduce((sum, value) => sum + value, 0);
}

/** Integers of [from, to). */
export function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, i) => from + i);
}

export function chunks(x: Vector, size: number): Vector[] {
  return range(0, x.length / size).map((i) => x.slice(i * size, (i + 1) * size));
}
