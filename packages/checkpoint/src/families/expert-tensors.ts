import type { TensorRef } from "@coppice/core";

/**
 * Everything of one set of experts that surgery edits, found in the files by name: the experts of a decoder layer, or
 * those of a multi-token-prediction layer, which follow the plan of a decoder layer.
 */
export interface ExpertTensors {
  /** Index of the decoder layer whose plan applies. */
  readonly layer: number;
  /** How messages call it: "layer 3", "multi-token-prediction layer 61". */
  readonly label: string;
  /** Number of experts. */
  readonly experts: number;
  /** Tensors with one entry per expert along an axis: router weights, biases and corrections. */
  readonly rows: readonly ExpertRows[];
  /** Tensors of a single expert, of all experts, siblings such as scales included. */
  readonly separate: readonly SeparateTensor[];
  /** Tensors that hold all experts one after the other, siblings included. */
  readonly stacked: readonly StackedTensor[];
}

export interface ExpertRows {
  readonly tensor: TensorRef;
  /** Axis with one entry per expert: 0, or the last one. */
  readonly axis: number;
  readonly role: "weight" | "bias" | "correction";
}

/**
 * How values of an expert's tensor are computed when experts are merged. `plain`: the stored values are floats and
 * merge element by element. `codes` and `scales`: stored codes and block scales of one weight, quantized anew together
 * (`quantizeBlocks` of core). `opaque`: cannot be computed (GPTQ, AWQ and other packs), only moved.
 */
export type MergeRule = "plain" | "codes" | "scales" | "opaque";

export interface SeparateTensor {
  readonly tensor: TensorRef;
  readonly expert: number;
  /** Name with `{e}` in place of the expert's number. */
  readonly pattern: string;
  readonly merge: MergeRule;
  /** Of codes: their scales; of scales: their codes. */
  readonly partner?: TensorRef;
}

export interface StackedTensor {
  readonly tensor: TensorRef;
  /** Entries of axis 0 per expert: 1, or the expert's width where experts lie as stacked rows (DBRX). */
  readonly rowsPerExpert: number;
  readonly merge: MergeRule;
  readonly partner?: TensorRef;
}
