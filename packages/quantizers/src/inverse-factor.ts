/**
 * The upper triangular U with A⁻¹ = Uᵀ U of a symmetric positive definite A: row i of it says how the error of column i
 * is best spread over the columns behind it (GPTQ, arXiv 2210.17323, algorithm 1).
 *
 * With A = R Rᵀ, R upper triangular (the Cholesky factor from the last row upwards), U is R⁻¹.
 * @param a [n, n], symmetric; overwritten by U, with what lies below the diagonal undefined
 * @returns false when A is not positive definite
 */
export function inverseFactor(a: Float64Array, n: number): boolean {
  // R[i, j] = (A[i, j] - sum over k > j of R[i, k] R[j, k]) / R[j, j], for i <= j, columns from the last one.
  for (let j = n - 1; j >= 0; j--) {
    const other = j * n;
    let diagonal = a[other + j] as number;
    for (let k = j + 1; k < n; k++) diagonal -= (a[other + k] as number) ** 2;
    if (!(diagonal > 0 && diagonal < Number.POSITIVE_INFINITY)) return false;
    const root = Math.sqrt(diagonal);
    a[other + j] = root;
    for (let i = 0; i < j; i++) {
      const row = i * n;
      let sum = a[row + j] as number;
      for (let k = j + 1; k < n; k++) sum -= (a[row + k] as number) * (a[other + k] as number);
      a[row + j] = sum / root;
    }
  }
  // R U = 1, row by row from the last: U[i, j] = (1[i, j] - sum over i < k <= j of R[i, k] U[k, j]) / R[i, i].
  const line = new Float64Array(n);
  for (let i = n - 1; i >= 0; i--) {
    const row = i * n;
    const diagonal = a[row + i] as number;
    line.fill(0, i);
    for (let k = i + 1; k < n; k++) {
      const factor = a[row + k] as number;
      if (factor === 0) continue;
      const other = k * n;
      for (let j = k; j < n; j++) line[j] = (line[j] as number) - factor * (a[other + j] as number);
    }
    a[row + i] = 1 / diagonal;
    for (let j = i + 1; j < n; j++) a[row + j] = (line[j] as number) / diagonal;
  }
  return true;
}
