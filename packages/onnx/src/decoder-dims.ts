import type { Dim } from "./graph-builder.js";

/** Names of dimensions, as transformers.js knows them. */
export const decoderDims = {
  batch: "batch_size",
  sequence: "sequence_length",
  past: "past_sequence_length",
  total: "total_sequence_length",
} as const satisfies Record<string, Dim>;
