import type { LayerStatistics } from "@coppice/core";

/** Values of all pairs of n items, [n][n]. */
export function pairs(n: number, value: (i: number, j: number) => number): number[][] {
  return Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => value(i, j)));
}

/**
 * `(cos(z_i, z_j) + 1) / 2` of the router logits of experts i and j over all tokens (M-SMoE, arXiv 2310.01334), from their
 * Gram matrix; 0.5 for an expert whose logits were all 0.
 * @returns [E][E], symmetric
 */
export function logitSimilarity({ count, logitGram }: LayerStatistics): number[][] {
  const experts = count.length;
  const at = (i: number, j: number) => logitGram[i * experts + j] as number;
  return pairs(experts, (i, j) => {
    const norms = Math.sqrt(at(i, i) * at(j, j));
    return norms > 0 ? (at(i, j) / norms + 1) / 2 : 0.5;
  });
}

/**
 * `‖a_i - a_j‖` of all pairs of rows.
 * @param rows [n, size]
 * @returns [n][n], symmetric
 */
export function rowDistances(rows: Float64Array, n: number): number[][] {
  const size = rows.length / n;
  return pairs(n, (i, j) => {
    let squares = 0;
    for (let x = 0; x < size; x++) {
      const difference = (rows[i * size + x] as number) - (rows[j * size + x] as number);
      squares += difference * difference;
    }
    return Math.sqrt(squares);
  });
}
