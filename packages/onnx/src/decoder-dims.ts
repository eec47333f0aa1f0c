import type { Dim } from "./graph-builder.js";

/** Names of dimensions, as transformers.js knows them. */
export const decoderDims = {
  batch: "batch_size",
  sequence: "sequence_length",
  past: "past_sequence_length",
  total: "total_sequence_length",
} as const satisfies Record<string, Dim>;

/** Added to the score of what a token does not see: its probability is 0, and rows that see nothing else hold numbers all the same. */
export const hiddenScore = -1e9;
