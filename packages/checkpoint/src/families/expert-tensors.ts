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
  /** True: a layer for multi-token prediction, whose hidden units and inputs are not those of the decoder layer. */
  readonly isMtp?: true;
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

/**
 * Where the hidden units of an expert lie in one of its tensors, seen as a matrix as it is stored (a bias as one column):
 * along `axis`, those of gate and then those of up where it holds both.
 */
export interface UnitPlaces {
  /** Which factors of a plan's units apply: those of `rows` (gate and up) or of `columns` (down). */
  readonly factors: "rows" | "columns";
  readonly axis: 0 | 1;
  /** 2: gate and up together. */
  readonly matrices: 1 | 2;
  /** True: units of gate and up take turns (GPT-OSS). */
  readonly interleaved?: true;
}

export interface SeparateTensor {
  readonly tensor: TensorRef;
  readonly expert: number;
  /** Name with `{e}` in place of the expert's number. */
  readonly pattern: string;
  readonly merge: MergeRule;
  /** Of codes: their scales; of scales: their codes. */
  readonly partner?: TensorRef;
  /** Of scales: where units lie in their codes. Absent: it has none, as biases of down. */
  readonly units?: UnitPlaces;
}

export interface StackedTensor {
  readonly tensor: TensorRef;
  /** Entries of axis 0 per expert: 1, or the expert's width where experts lie as stacked rows (DBRX). */
  readonly rowsPerExpert: number;
  readonly merge: MergeRule;
  readonly partner?: TensorRef;
  readonly units?: UnitPlaces;
}
