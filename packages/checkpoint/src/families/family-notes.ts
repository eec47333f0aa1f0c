/** What pruning keeps exact, as `FamilyNotes.exact` says it, where several families are alike. */
export const exactWords = {
  /** The chosen are divided by their sum, or their softmax is over the chosen. */
  ratios: "gate weights depend on ratios of kept logits alone, so slicing router rows equals masking",
  normalizedByKey:
    "slicing router rows equals masking; without norm_topk_prob gate weights grow when experts go",
  corrected: "slicing router rows and corrections equals masking",
} as const;
