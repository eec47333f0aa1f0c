/** Columns that share the loads of a row of the factor. */
const lanes = 4;

/**
 * Factors a symmetric positive definite matrix in place: its lower triangle becomes L of A = L Lᵀ. Four entries of a row are
 * worked out at a time, whose sums are independent.
 * @param a [n, n], of which the lower triangle is read and replaced; what lies above the diagonal stays as it is
 * @returns false when the matrix is not positive definite, in which case its values are of no use
 */
export function factorCholesky(a: Float64Array, n: number): boolean {
  for (let i = 0; i < n; i++) {
    const row = i * n;
    let j = 0;
    for (; j + 3 < i; j += 4) {
      const [r0, r1, r2, r3] = [j * n, (j + 1) * n, (j + 2) * n, (j + 3) * n];
      let s0 = a[row + j] as number;
      let s1 = a[row + j + 1] as number;
      let s2 = a[row + j + 2] as number;
      let s3 = a[row + j + 3] as number;
      for (let k = 0; k < j; k++) {
        const v = a[row + k] as number;
        s0 -= v * (a[r0 + k] as number);
        s1 -= v * (a[r1 + k] as number);
        s2 -= v * (a[r2 + k] as number);
        s3 -= v * (a[r3 + k] as number);
      }
      s0 /= a[r0 + j] as number;
      s1 = (s1 - s0 * (a[r1 + j] as number)) / (a[r1 + j + 1] as number);
      s2 = s2 - s0 * (a[r2 + j] as number) - s1 * (a[r2 + j + 1] as number);
      s2 /= a[r2 + j + 2] as number;
      s3 = s3 - s0 * (a[r3 + j] as number) - s1 * (a[r3 + j + 1] as number) - s2 * (a[r3 + j + 2] as number);
      s3 /= a[r3 + j + 3] as number;
      a[row + j] = s0;
      a[row + j + 1] = s1;
      a[row + j + 2] = s2;
      a[row + j + 3] = s3;
    }
    for (; j <= i; j++) {
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
 * Solves A X = B in place, given the factor of A.
 * @param factor [n, n], as `factorCholesky` leaves it
 * @param b [columns, n]: the columns of B one after the other; become those of X
 */
export function solveCholesky(factor: Float64Array, n: number, b: Float64Array): void {
  let from = 0;
  for (; from + lanes * n <= b.length; from += lanes * n) solveLanes(factor, n, b, from);
  for (; from < b.length; from += n) solveOne(factor, n, b, from);
}

/** Four columns at once, in place: they lie at `from`, `from + n` and so on. */
function solveLanes(factor: Float64Array, n: number, x: Float64Array, from: number): void {
  const [x0, x1, x2, x3] = [from, from + n, from + 2 * n, from + 3 * n];
  for (let i = 0; i < n; i++) {
    const row = i * n;
    let s0 = x[x0 + i] as number;
    let s1 = x[x1 + i] as number;
    let s2 = x[x2 + i] as number;
    let s3 = x[x3 + i] as number;
    for (let k = 0; k < i; k++) {
      const v = factor[row + k] as number;
      s0 -= v * (x[x0 + k] as number);
      s1 -= v * (x[x1 + k] as number);
      s2 -= v * (x[x2 + k] as number);
      s3 -= v * (x[x3 + k] as number);
    }
    const diagonal = factor[row + i] as number;
    x[x0 + i] = s0 / diagonal;
    x[x1 + i] = s1 / diagonal;
    x[x2 + i] = s2 / diagonal;
    x[x3 + i] = s3 / diagonal;
  }
  // By rows of L, which are columns of Lᵀ.
  for (let i = n - 1; i >= 0; i--) {
    const row = i * n;
    const diagonal = factor[row + i] as number;
    const v0 = (x[x0 + i] as number) / diagonal;
    const v1 = (x[x1 + i] as number) / diagonal;
    const v2 = (x[x2 + i] as number) / diagonal;
    const v3 = (x[x3 + i] as number) / diagonal;
    x[x0 + i] = v0;
    x[x1 + i] = v1;
    x[x2 + i] = v2;
    x[x3 + i] = v3;
    for (let k = 0; k < i; k++) {
      const v = factor[row + k] as number;
      x[x0 + k] = (x[x0 + k] as number) - v * v0;
      x[x1 + k] = (x[x1 + k] as number) - v * v1;
      x[x2 + k] = (x[x2 + k] as number) - v * v2;
      x[x3 + k] = (x[x3 + k] as number) - v * v3;
    }
  }
}

function solveOne(factor: Float64Array, n: number, x: Float64Array, from: number): void {
  for (let i = 0; i < n; i++) {
    let sum = x[from + i] as number;
    for (let k = 0; k < i; k++) sum -= (factor[i * n + k] as number) * (x[from + k] as number);
    x[from + i] = sum / (factor[i * n + i] as number);
  }
  for (let i = n - 1; i >= 0; i--) {
    const value = (x[from + i] as number) / (factor[i * n + i] as number);
    x[from + i] = value;
    for (let k = 0; k < i; k++) x[from + k] = (x[from + k] as number) - (factor[i * n + k] as number) * value;
  }
}
