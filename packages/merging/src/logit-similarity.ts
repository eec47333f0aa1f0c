import type { LayerStatistics } from "@coppice/core";

/**
 * `(cos(z_i, z_j) + 1) / 2` of the router logits of experts i and j over all tokens (M-SMoE, arXiv 2310.01334), from their
 * Gram matrix; 0.5 for an expert whose logits were all 0.
 * @returns [E][E], symmetric
 */
export function logitSimilarity({ count, logitGram }: LayerStatistics): number[][] {
  const experts = count.length;
  const at = (i: number, j: number) => logitGram[i * experts + j] as number;
  return Array.from({ length: experts }, (_, i) =>
    Array.from({ length: experts }, (_, j) => {
      const norms = Math.sqrt(at(i, i) * at(j, j));
      return norms > 0 ? (at(i, j) / norms + 1) / 2 : 0.5;
    }),
  );
}
