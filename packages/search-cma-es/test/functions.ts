import { Rng } from "@coppice/core";
import { CovarianceAdaptation, type CovarianceAdaptationOptions } from "@coppice/search-cma-es";

/** To be minimised; the minimum is 0. */
export type TestFunction = (x: ArrayLike<number>) => number;

export const sphere: TestFunction = (x) => Array.from(x).reduce((sum, value) => sum + value ** 2, 0);

/** Condition number 1e6. */
export const ellipsoid: TestFunction = (x) =>
  Array.from(x).reduce((sum, value, i) => sum + 10 ** ((6 * i) / (x.length - 1)) * value ** 2, 0);

export const rosenbrock: TestFunction = (x) => {
  let sum = 0;
  for (let i = 0; i + 1 < x.length; i++) {
    const [a, b] = [x[i] as number, x[i + 1] as number];
    sum += 100 * (a ** 2 - b) ** 2 + (a - 1) ** 2;
  }
  return sum;
};

/** `f` in a coordinate system turned at random (Gram-Schmidt of normal vectors). */
export function rotated(f: TestFunction, dimension: number, seed: number): TestFunction {
  const rng = Rng.fromSeed(seed);
  const basis: number[][] = [];
  while (basis.length < dimension) {
    let vector = Array.from({ length: dimension }, () => rng.normal());
    for (const other of basis) {
      const along = vector.reduce((sum, value, i) => sum + value * (other[i] as number), 0);
      vector = vector.map((value, i) => value - along * (other[i] as number));
    }
    const length = Math.hypot(...vector);
    basis.push(vector.map((value) => value / length));
  }
  return (x) => f(basis.map((row) => row.reduce((sum, value, i) => sum + value * (x[i] as number), 0)));
}

/** Evaluations until `f` is below 1e-9, or Infinity. */
export function evaluationsTo(
  f: TestFunction,
  options: Omit<CovarianceAdaptationOptions, "rng">,
  seed: number,
): number {
  const es = new CovarianceAdaptation({ ...options, rng: Rng.fromSeed(seed) });
  for (let evaluations = 0; es.stopped === undefined && evaluations < 50_000; ) {
    const values = es.sample().map(f);
    evaluations += values.length;
    if (Math.min(...values) < 1e-9) return evaluations;
    es.update(values.map((value) => -value));
  }
  return Number.POSITIVE_INFINITY;
}

export const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] as number;
