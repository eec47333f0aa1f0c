import type { MoeLayer, MoeModel } from "./model.js";

/**
 * One-pass sums of one MoE layer over T calibration tokens. E is the number of experts, T(j) the tokens routed to
 * expert j, g the gate weight of the model's own routing, f the output of an expert before it is weighted, ‖f‖ its L2
 * norm, z the router logits (the router's bias included, a correction for the choice not) and p their softmax over all
 * experts. All sums are float64, [E] unless said, and add up across files.
 *
 * Moments are sums of g^b ‖f‖^c over T(j). Where gate weights scale inputs (`RouterSpec.scalesInput`), f is f(g·x), whose
 * norm contains g already: there they are sums of g^max(0, b - c) ‖f‖^c.
 */
export interface LayerStatistics {
  readonly layer: number;
  /** T; in mixtures of data, tokens times their weight, like all counts below. */
  tokens: number;
  /** |T(j)| */
  readonly count: Float64Array;
  /** g */
  readonly gate: Float64Array;
  /** g² */
  readonly gate2: Float64Array;
  /** ‖f‖ */
  readonly norm: Float64Array;
  /** g ‖f‖: the norm of what the expert really added. */
  readonly gateNorm: Float64Array;
  /** g² ‖f‖ */
  readonly gate2Norm: Float64Array;
  /** ‖f‖² */
  readonly norm2: Float64Array;
  /** g ‖f‖² */
  readonly gateNorm2: Float64Array;
  /** g² ‖f‖² */
  readonly gate2Norm2: Float64Array;
  /** Sum of p over all tokens. */
  readonly probability: Float64Array;
  /** Sum of z over the tokens where it is the largest of all; ties go to the lower expert. */
  readonly topLogit: Float64Array;
  /** Sum of z over T(j). */
  readonly routedLogit: Float64Array;
  /** ZᵀZ, [E, E], symmetric: sums of z_i z_j over all tokens. */
  readonly logitGram: Float64Array;

  /**
   * Collected on demand: sum over T(j) of c g ‖f‖ (c ‖f‖ where gate weights scale inputs), c = max(0, 1 - cos(h, h + y)),
   * h the residual stream before the block and y what the routed experts add to it (EASY-EP, arXiv 2504.06792).
   */
  readonly change?: Float64Array;
  /** Collected on demand: the largest magnitude of an element of f over T(j). The larger one counts when files add up. */
  readonly peak?: Float64Array;
  /** Collected on demand: sum of f over T(j), [E, hidden]. */
  readonly outputSum?: Float64Array;
  /**
   * Collected on demand: sum of ‖f‖² over T(j), like `norm2`, but not of norms that were rounded to float32 before:
   * variances, in which most of it cancels, need it.
   */
  readonly outputNorm2?: Float64Array;
  /** Collected on demand: sum of the squares of each hidden unit over T(j), [E, width] (HEAPr, without its gradients). */
  readonly unitSquares?: Float64Array;
  /** Collected on demand: sum of f over all tokens, whichever expert they were routed to, [E, hidden] (HC-SMoE). */
  readonly everyOutputSum?: Float64Array;
  /** Collected on demand: sum of ⟨f_i, f_j⟩ over all tokens, [E, E], symmetric. */
  readonly outputGram?: Float64Array;
  /** Collected on demand: sum of cos(f_i, f_j) over all tokens, 0 where one is zero, [E, E], symmetric (REAM). */
  readonly outputCosine?: Float64Array;

  /** Single tokens, the same in every layer. */
  readonly sample?: LayerSample;
}

/** What one layer shows of the S tokens of `Statistics.sample`, in their order. */
export interface LayerSample {
  /** Router logits, [S, E]. */
  readonly logits: Float32Array;
  /** Input of the MoE block, [S, hidden]. */
  readonly inputs?: Float32Array;
  /** ⟨f_i, f_j⟩ of all experts, [S, E, E]: what any choice of experts changes of the block's output follows from it. */
  readonly grams?: Float32Array;
  /** Hidden units of all experts, [S, E, width]. */
  readonly units?: Float32Array;
}

/** Names of what a sample may have beside logits, in file order. */
export const sampleFields = [
  "logits",
  "inputs",
  "grams",
  "units",
] as const satisfies readonly (keyof LayerSample)[];

export type SampleField = (typeof sampleFields)[number];

/**
 * A random sample of the tokens, without replacement. A token's priority is -ln(u) / w: u in (0, 1) is a hash of its
 * sequence and position, w its weight. The sample is the `limit` lowest priorities (or all tokens, where there are no
 * more), so that the samples of two sets of data give that of their union.
 */
export interface TokenSample {
  readonly limit: number;
  /** [S], ascending. */
  readonly priorities: Float64Array;
}

/** Names of the sums with one value per expert, in file order. */
export const expertFields = [
  "count",
  "gate",
  "gate2",
  "norm",
  "gateNorm",
  "gate2Norm",
  "norm2",
  "gateNorm2",
  "gate2Norm2",
  "probability",
  "topLogit",
  "routedLogit",
] as const satisfies readonly (keyof LayerStatistics)[];

/** Names of all sums, in file order. */
export const statisticsFields = [
  ...expertFields,
  "logitGram",
] as const satisfies readonly (keyof LayerStatistics)[];

export type StatisticsField = (typeof statisticsFields)[number];

/** Names of what is collected on demand, in file order. */
export const extraFields = [
  "change",
  "peak",
  "outputSum",
  "outputNorm2",
  "unitSquares",
  "everyOutputSum",
  "outputGram",
  "outputCosine",
] as const satisfies readonly (keyof LayerStatistics)[];

export type ExtraField = (typeof extraFields)[number];

/** Sizes of a layer that shapes of sums depend on. */
export interface LayerSizes {
  readonly experts: number;
  /** Values per token. */
  readonly hidden: number;
  /** Hidden units per expert. */
  readonly width: number;
}

/** Sizes of a model's MoE layer. */
export function layerSizes({ feedForward }: MoeLayer, { hiddenSize }: MoeModel): LayerSizes {
  const { experts } = feedForward;
  return { experts: experts.length, hidden: hiddenSize, width: experts[0]?.width ?? 0 };
}

/** Shape of a sum of a layer. */
export function statisticsShape(
  field: StatisticsField | ExtraField,
  { experts, hidden, width }: LayerSizes,
): number[] {
  switch (field) {
    case "logitGram":
    case "outputGram":
    case "outputCosine":
      return [experts, experts];
    case "outputSum":
    case "everyOutputSum":
      return [experts, hidden];
    case "unitSquares":
      return [experts, width];
    default:
      return [experts];
  }
}

/** Shape of what a sample of `tokens` tokens has of a layer. */
export function sampleShape(
  field: SampleField,
  tokens: number,
  { experts, hidden, width }: LayerSizes,
): number[] {
  switch (field) {
    case "logits":
      return [tokens, experts];
    case "inputs":
      return [tokens, hidden];
    case "grams":
      return [tokens, experts, experts];
    case "units":
      return [tokens, experts, width];
  }
}

const moments = [
  ["count", "norm", "norm2"],
  ["gate", "gateNorm", "gateNorm2"],
  ["gate2", "gate2Norm", "gate2Norm2"],
] as const;

/** The sums of g^b ‖f‖^c over the tokens that are routed to each expert, as they are stored. */
export function moment(statistics: LayerStatistics, b: 0 | 1 | 2, c: 0 | 1 | 2): Float64Array {
  return statistics[moments[b][c]];
}

export interface Statistics {
  /** Fingerprint of the model they were collected on. */
  readonly model: string;
  /** In mixtures of data, tokens times their weight. */
  readonly tokens: number;
  /** One entry per MoE layer, in layer order. All have the same of what is collected on demand. */
  readonly layers: readonly LayerStatistics[];
  /** Present exactly when all layers have a sample. */
  readonly sample?: TokenSample;
}

/** What the sample has; empty without one. */
export function sampleFieldsOf({ layers }: Statistics): SampleField[] {
  return sampleFields.filter((field) => layers[0]?.sample?.[field] !== undefined);
}

/** What was collected on demand. */
export function extrasOf({ layers }: Statistics): ExtraField[] {
  return extraFields.filter((field) => layers[0]?.[field] !== undefined);
}

/** Experts that no token was routed to, and whose scores from statistics therefore say nothing. */
export interface UnusedExperts {
  readonly layer: number;
  /** Ascending, at least one. */
  readonly experts: readonly number[];
}

/** Layers with experts that no token was routed to. */
export function unusedExperts({ layers }: Statistics): UnusedExperts[] {
  return layers.flatMap(({ layer, count }) => {
    const experts = Array.from(count.keys()).filter((expert) => count[expert] === 0);
    return experts.length > 0 ? [{ layer, experts }] : [];
  });
}
