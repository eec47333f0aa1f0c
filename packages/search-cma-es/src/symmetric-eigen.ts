/** `matrix = V · diag(values) · Vᵀ`. */
export interface Eigen {
  readonly values: Float64Array;
  /** Row-major [size, size]; column i belongs to `values[i]`, columns are orthonormal. */
  readonly vectors: Float64Array;
}

/** Sweeps in which Jacobi's method converges for matrices of any size that is used here; it needs some 6 to 10. */
const mostSweeps = 50;

/**
 * Eigenvalues and eigenvectors of a symmetric matrix by cyclic Jacobi rotations (Golub and Van Loan, *Matrix
 * Computations*, section 8.5), which also finds small eigenvalues to high relative accuracy.
 * @param matrix row-major [size, size]
 */
export function symmetricEigen(matrix: Float64Array, size: number): Eigen {
  const a = Float64Array.from(matrix);
  const vectors = new Float64Array(size * size);
  for (let i = 0; i < size; i++) vectors[i * size + i] = 1;
  const at = (i: number, j: number) => a[i * size + j] as number;
  for (let sweep = 0; sweep < mostSweeps; sweep++) {
    let rotated = false;
    for (let p = 0; p < size; p++) {
      for (let q = p + 1; q < size; q++) {
        const off = at(p, q);
        if (Math.abs(off) <= Number.EPSILON * Math.sqrt(Math.abs(at(p, p) * at(q, q)))) continue;
        rotated = true;
        const tau = (at(q, q) - at(p, p)) / (2 * off);
        const t = (tau >= 0 ? 1 : -1) / (Math.abs(tau) + Math.hypot(1, tau));
        const c = 1 / Math.hypot(1, t);
        rotate(a, size, p, q, c, t * c);
        for (let k = 0; k < size; k++) {
          const [x, y] = [vectors[k * size + p] as number, vectors[k * size + q] as number];
          vectors[k * size + p] = c * x - t * c * y;
          vectors[k * size + q] = t * c * x + c * y;
        }
      }
    }
    if (!rotated) break;
  }
  return { values: Float64Array.from({ length: size }, (_, i) => at(i, i)), vectors };
}

/** a ← Jᵀ a J for the rotation J in the plane of p and q. */
function rotate(a: Float64Array, size: number, p: number, q: number, c: number, s: number): void {
  for (let k = 0; k < size; k++) {
    const [x, y] = [a[k * size + p] as number, a[k * size + q] as number];
    a[k * size + p] = c * x - s * y;
    a[k * size + q] = s * x + c * y;
  }
  for (let k = 0; k < size; k++) {
    const [x, y] = [a[p * size + k] as number, a[q * size + k] as number];
    a[p * size + k] = c * x - s * y;
    a[q * size + k] = s * x + c * y;
  }
}
