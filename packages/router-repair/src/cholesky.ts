/**
 * Factors a symmetric positive definite matrix in place: its lower triangle becomes L of A = L Lᵀ.
 * @param a [n, n], of which the lower triangle is read and replaced; what lies above the diagonal stays as it is
 * @returns false when the matrix is not positive definite, in which case its values are of no use
 */
export function factorCholesky(a: Float64Array, n: number): boolean {
  for (let i = 0; i < n; i++) {
    const row = i * n;
    for (let j = 0; j <= i; j++) {
      const other = j * n;
      let sum = a[row + j] as number;
      for (let k = 0; k < j; k++) sum -= (a[row + k] as number) * (a[other + k] as number);
      if (j < i) a[row + j] = sum / (a[other + j] as number);
      else if (sum > 0 && sum < Number.POSITIVE_INFINITY) a[row + i] = Math.sqrt(sum);
      else return false;
    }
  }
  return true;
}

/**
 * Solves A x = b in place, given the factor of A.
 * @param factor [n, n], as `factorCholesky` leaves it
 * @param b [n], becomes x
 */
export function solveCholesky(factor: Float64Array, n: number, b: Float64Array): void {
  for (let i = 0; i < n; i++) {
    let sum = b[i] as number;
    for (let k = 0; k < i; k++) sum -= (factor[i * n + k] as number) * (b[k] as number);
    b[i] = sum / (factor[i * n + i] as number);
  }
  // By rows of L, which are columns of Lᵀ.
  for (let i = n - 1; i >= 0; i--) {
    const x = (b[i] as number) / (factor[i * n + i] as number);
    b[i] = x;
    for (let k = 0; k < i; k++) b[k] = (b[k] as number) - (factor[i * n + k] as number) * x;
  }
}
