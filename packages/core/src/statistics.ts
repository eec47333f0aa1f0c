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
] as const satisfies readonly (keyof LayerStatistics)[];

export type ExtraField = (typeof extraFields)[number];

/**
 * Shape of a sum of a layer of `experts` experts.
 * @param hidden values per token, which `outputSum` alone depends on
 */
export function statisticsShape(field: StatisticsField | ExtraField, experts: number, hidden = 0): number[] {
  if (field === "logitGram") return [experts, experts];
  return field === "outputSum" ? [experts, hidden] : [experts];
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
