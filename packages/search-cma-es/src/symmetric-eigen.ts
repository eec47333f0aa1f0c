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
  for (let sweep = 0; sweep < mostSweeps; sweep++) {
    let rotated = false;
    for (let p = 0; p < size; p++) {
      for (let q = p + 1; q < size; q++) {
        const off = a[p * size + q] as number;
        const [first, second] = [a[p * size + p] as number, a[q * size + q] as number];
        if (Math.abs(off) <= Number.EPSILON * Math.sqrt(Math.abs(first * second))) continue;
        rotated = true;
        const tau = (second - first) / (2 * off);
        const t = (tau >= 0 ? 1 : -1) / (Math.abs(tau) + Math.sqrt(1 + tau * tau));
        const c = 1 / Math.sqrt(1 + t * t);
        rotateColumns(a, size, p, q, c, t * c);
        rotateRows(a, size, p, q, c, t * c);
        rotateColumns(vectors, size, p, q, c, t * c);
      }
    }
    if (!rotated) break;
  }
  return { values: Float64Array.from({ length: size }, (_, i) => a[i * size + i] as number), vectors };
}

/** a ← a J for the rotation J in the plane of p and q. */
function rotateColumns(a: Float64Array, size: number, p: number, q: number, c: number, s: number): void {
  for (let row = 0; row < size * size; row += size) {
    const x = a[row + p] as number;
    const y = a[row + q] as number;
    a[row + p] = c * x - s * y;
    a[row + q] = s * x + c * y;
  }
}

/** a ← Jᵀ a */
function rotateRows(a: Float64Array, size: number, p: number, q: number, c: number, s: number): void {
  for (let k = 0; k < size; k++) {
    const x = a[p * size + k] as number;
    const y = a[q * size + k] as number;
    a[p * size + k] = c * x - s * y;
    a[q * size + k] = s * x + c * y;
  }
}
