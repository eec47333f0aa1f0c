import type { NormSpec } from "@coppice/core";
import type { GraphBuilder, Value } from "./graph-builder.js";

/** What the graph of a norm depends on. */
export interface NormShape {
  readonly kind: "rms" | "layer";
  readonly epsilon: number;
  readonly bias: boolean;
}

export function normShape({ kind, epsilon, bias }: NormSpec): NormShape {
  return { kind, epsilon, bias: bias !== undefined };
}

/**
 * A norm over the last axis of `size` values, computed in float32. Its weight [size] is the input `name`, its bias
 * `<name>Bias`; a norm without a weight is one of ones.
 * @param output name of the result; absent: one is made up
 */
export function norm(
  graph: GraphBuilder,
  value: Value,
  name: string,
  size: number,
  { kind, epsilon, bias }: NormShape,
  output?: string,
): Value {
  const inputs = [value, graph.input(name, [size])];
  const attributes = { axis: -1, epsilon: { float: epsilon }, stash_type: 1 };
  if (kind === "layer") {
    if (bias) inputs.push(graph.input(`${name}Bias`, [size]));
    return graph.node("LayerNormalization", inputs, { attributes }, output);
  }
  if (!bias) return graph.node("SimplifiedLayerNormalization", inputs, { attributes }, output);
  const normed = graph.node("SimplifiedLayerNormalization", inputs, { attributes });
  return graph.node("Add", [normed, graph.input(`${name}Bias`, [size])], {}, output);
}
