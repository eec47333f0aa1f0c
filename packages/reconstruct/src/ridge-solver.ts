import { CoppiceError, factorCholesky, solveCholesky } from "@coppice/core";

/**
 * Solves (G + ridge * mean(diag G) * I) X = B.
 * @param gram [n, n], symmetric; the lower triangle is read and nothing is written
 * @param right [columns, n]: the columns of B one after the other
 * @returns [columns, n]
 * @throws COPPICE_FORMAT_NAN when the system is not positive definite: the inputs hold NaN or infinite values
 */
export function solveRidge(gram: Float64Array, n: number, right: Float64Array, ridge: number): Float64Array {
  const factor = gram.slice();
  let trace = 0;
  for (let i = 0; i < n; i++) trace += gram[i * n + i] as number;
  // Without any input there is nothing to fit and any positive number does.
  const added = trace > 0 ? (ridge * trace) / n : 1;
  for (let i = 0; i < n; i++) factor[i * n + i] = (factor[i * n + i] as number) + added;
  if (!factorCholesky(factor, n)) {
    throw new CoppiceError(
      "COPPICE_FORMAT_NAN",
      `the normal equations of ${n} hidden units are not positive definite`,
      { hint: "hidden units of the model are NaN or infinite on the given texts" },
    );
  }
  const x = right.slice();
  solveCholesky(factor, n, x);
  return x;
}
