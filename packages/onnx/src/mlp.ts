import type { ActivationSpec, MlpSpec } from "@coppice/core";
import type { GraphBuilder, Value } from "./graph-builder.js";

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
 * Makes the weights of an MLP inputs of the graph, each named after its part with `suffix` behind it: `gate` and `up`
 * [width, hidden], `down` [hidden, width], biases [width] and [hidden].
 */
export function mlpInputs(
  graph: GraphBuilder,
  { hidden, width, activation, biases }: MlpShape,
  suffix = "",
): MlpEntries<Value> {
  const input = (part: MlpPart, size: readonly number[]) => ({
    [part]: graph.input(`${part}${suffix}`, size),
  });
  const bias = (part: MlpPart, size: number) => (biases.includes(part) ? input(part, [size]) : {});
  return {
    ...(activation.kind !== "relu2" && input("gate", [width, hidden])),
    up: graph.input(`up${suffix}`, [width, hidden]),
    down: graph.input(`down${suffix}`, [hidden, width]),
    ...bias("gateBias", width),
    ...bias("upBias", width),
    ...bias("downBias", hidden),
  };
}

/** An MLP of rows [M, hidden]; core's `ActivationSpec` has the formulas. */
export function mlp(
  graph: GraphBuilder,
  x: Value,
  activation: ActivationSpec,
  weights: MlpEntries<Value>,
): Value {
  return downProjection(graph, hiddenUnits(graph, x, activation, weights), weights);
}

/** What `down` multiplies in an MLP of rows [M, hidden], [M, width]. */
export function hiddenUnits(
  graph: GraphBuilder,
  x: Value,
  activation: ActivationSpec,
  weights: MlpEntries<Value>,
): Value {
  const project = (part: "gate" | "up") => linear(graph, x, weights, part);
  const times = (a: Value, b: Value) => graph.node("Mul", [a, b]);
  switch (activation.kind) {
    case "silu": {
      const gated = project("gate");
      const silu = times(gated, graph.node("Sigmoid", [gated]));
      return times(silu, project("up"));
    }
    case "clamped-swiglu": {
      const limit = graph.float32(activation.limit);
      const gate = graph.node("Clip", [project("gate"), "", limit]);
      const up = graph.node("Clip", [project("up"), graph.float32(-activation.limit), limit]);
      const slope = graph.node("Sigmoid", [times(gate, graph.float32(activation.alpha))]);
      const shifted = graph.node("Add", [up, graph.float32(1)]);
      return times(times(gate, slope), shifted);
    }
    case "relu2": {
      const positive = graph.node("Relu", [project("up")]);
      return times(positive, positive);
    }
  }
}

/** What hidden units [M, width] become outside, [M, hidden]. */
export function downProjection(graph: GraphBuilder, units: Value, weights: MlpEntries<Value>): Value {
  return linear(graph, units, weights, "down");
}

function linear(
  graph: GraphBuilder,
  rows: Value,
  weights: MlpEntries<Value>,
  part: "gate" | "up" | "down",
): Value {
  const inputs = [rows, weights[part], weights[`${part}Bias`]];
  return graph.node(
    "Gemm",
    inputs.filter((name) => name !== undefined),
    { attributes: { transB: 1 } },
  );
}
