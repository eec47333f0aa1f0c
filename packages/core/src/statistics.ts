/**
 * One-pass sums of one MoE layer over T calibration tokens. E is the number of experts, T(j) the tokens routed to
 * expert j, g the gate weight that really multiplied the output, p the softmax probability over all experts, and
 * ‖f‖ the L2 norm of the unweighted expert output. All sums are float64 and add up across files.
 */
export interface LayerStatistics {
  readonly layer: number;
  tokens: number;
  /** |T(j)| */
  readonly count: Float64Array;
  /** Sum of g over T(j). */
  readonly gate: Float64Array;
  /** Sum of p over all tokens. */
  readonly probability: Float64Array;
  /** Sum of ‖f‖ over T(j). */
  readonly norm: Float64Array;
  /** Sum of ‖f‖² over T(j). */
  readonly squaredNorm: Float64Array;
  /** Sum of g·‖f‖ over T(j): of the norm of what the expert really added, so of ‖f(g·x)‖ where g scales inputs. */
  readonly gateNorm: Float64Array;
  /** Sum of the squares of these. */
  readonly squaredGateNorm: Float64Array;
}

/** Names of the per-expert sums, in file order. */
export const statisticsFields = [
  "count",
  "gate",
  "probability",
  "norm",
  "squaredNorm",
  "gateNorm",
  "squaredGateNorm",
] as const satisfies readonly (keyof LayerStatistics)[];

export interface Statistics {
  /** Fingerprint of the model they were collected on. */
  readonly model: string;
  readonly tokens: number;
  /** One entry per MoE layer, in layer order. */
  readonly layers: readonly LayerStatistics[];
}
