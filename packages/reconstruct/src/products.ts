/** Products of tall matrices, the bulk of the work here: a backend's can take the place of plain loops. */
export interface MatrixProducts {
  /**
   * Aᵀ B, [p, q].
   * @param a [rows, p]
   * @param b [rows, q]
   */
  transposed(request: ProductRequest): Promise<Float32Array>;
}

export interface ProductRequest {
  readonly a: Float32Array;
  readonly b: Float32Array;
  readonly rows: number;
  readonly p: number;
  readonly q: number;
}

/** Plain loops, summed in float64; `openProducts` of a backend is some fifty times as fast. */
export const plainProducts: MatrixProducts = {
  async transposed({ a, b, rows, p, q }) {
    const sums = new Float64Array(p * q);
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < p; i++) {
        const factor = a[row * p + i] as number;
        if (factor === 0) continue;
        const out = i * q;
        const from = row * q;
        for (let j = 0; j < q; j++)
          sums[out + j] = (sums[out + j] as number) + factor * (b[from + j] as number);
      }
    }
    return Float32Array.from(sums);
  },
};
