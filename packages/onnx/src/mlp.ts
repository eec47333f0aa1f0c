import type { ActivationSpec, MlpSpec } from "@coppice/core";
import type { GraphBuilder, Value } from "./graph-builder.js";
import type { PartWeights } from "./part-weights.js";

/** The weights of an MLP, as core's `MlpSpec` names them. */
export const mlpParts = ["gate", "up", "down", "gateBias", "upBias", "downBias"] as const;
export type MlpPart = (typeof mlpParts)[number];

/** One entry per weight that the MLP has; up and down there always are. */
export type MlpEntries<T> = { readonly up: T; readonly down: T } & { readonly [part in MlpPart]?: T };

/** All that the graph of an MLP depends on, whether expert, shared expert or dense. Plain data. */
export interface MlpShape {
  readonly hidden: number;
  /** Rows of up. */
  readonly width: number;
  readonly activation: ActivationSpec;
  /** Those of `gateBias`, `upBias` and `downBias` that there are. */
  readonly biases: readonly MlpPart[];
}

export function mlpShape(spec: MlpSpec, hidden: number): MlpShape {
  const { width, activation } = spec;
  const biases = (["gateBias", "upBias", "downBias"] as const).filter((part) => spec[part] !== undefined);
  return { hidden, width, activation, biases };
}

/**
 * An MLP of rows [M, hidden]; core's `ActivationSpec` has the formulas. Its weights have the names of `mlpParts`: `gate`
 * and `up` [width, hidden], `down` [hidden, width], biases [width] and [hidden].
 */
export function mlp(graph: GraphBuilder, weights: PartWeights, rows: Value, shape: MlpShape): Value {
  return downProjection(weights, hiddenUnits(graph, weights, rows, shape), shape);
}

/** What `down` multiplies in an MLP of rows [M, hidden], [M, width]. */
export function hiddenUnits(graph: GraphBuilder, weights: PartWeights, rows: Value, shape: MlpShape): Value {
  const { hidden, width, activation, biases } = shape;
  const project = (part: "gate" | "up") =>
    weights.linear(rows, part, [width, hidden], { bias: biases.includes(`${part}Bias`) });
  if (activation.kind === "relu2") return activate(graph, activation, project("up"));
  return activate(graph, activation, project("up"), project("gate"));
}

/** Hidden units of what gate and up gave, all [M, width]. */
export function activate(
  graph: GraphBuilder,
  activation: ActivationSpec,
  up: Value,
  gate: Value = "",
): Value {
  const times = (a: Value, b: Value) => graph.node("Mul", [a, b]);
  switch (activation.kind) {
    case "silu":
      return times(times(gate, graph.node("Sigmoid", [gate])), up);
    case "clamped-swiglu": {
      const limit = graph.float32(activation.limit);
      const limited = graph.node("Clip", [gate, "", limit]);
      const clamped = graph.node("Clip", [up, graph.float32(-activation.limit), limit]);
      const slope = graph.node("Sigmoid", [times(limited, graph.float32(activation.alpha))]);
      const shifted = graph.node("Add", [clamped, graph.float32(1)]);
      return times(times(limited, slope), shifted);
    }
    case "relu2": {
      const positive = graph.node("Relu", [up]);
      return times(positive, positive);
    }
  }
}

/** What hidden units [M, width] become outside, [M, hidden]. */
export function downProjection(
  weights: PartWeights,
  units: Value,
  { hidden, width, biases }: MlpShape,
): Value {
  return weights.linear(units, "down", [hidden, width], { bias: biases.includes("downBias") });
}
