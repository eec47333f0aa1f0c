import type { NormSpec } from "@coppice/core";
import type { GraphBuilder, Value } from "./graph-builder.js";
import type { PartWeights } from "./part-weights.js";

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
 * A norm over the last axis of `size` values, computed in float32. Its weight [size] is `name`, its bias
 * `<name>Bias`; a norm without a weight is one of ones.
 * @param output name of the result; absent: one is made up
 */
export function norm(
  graph: GraphBuilder,
  weights: PartWeights,
  value: Value,
  name: string,
  size: number,
  { kind, epsilon, bias }: NormShape,
  output?: string,
): Value {
  const inputs = [value, weights.vector(name, size)];
  const attributes = { axis: -1, epsilon: { float: epsilon }, stash_type: 1 };
  if (kind === "layer") {
    if (bias) inputs.push(weights.vector(`${name}Bias`, size));
    return graph.node("LayerNormalization", inputs, { attributes }, output);
  }
  if (!bias) return graph.node("SimplifiedLayerNormalization", inputs, { attributes }, output);
  const normed = graph.node("SimplifiedLayerNormalization", inputs, { attributes });
  return graph.node("Add", [normed, weights.vector(`${name}Bias`, size)], {}, output);
}

/**
 * `sum` of both and `normed`, the norm of that sum, in one operator where there is one.
 * @param names of the sum and of its norm
 */
export function addAndNorm(
  graph: GraphBuilder,
  weights: PartWeights,
  [a, b]: readonly [Value, Value],
  name: string,
  size: number,
  shape: NormShape,
  names: { readonly sum: string; readonly normed: string },
): void {
  const { kind, bias, epsilon } = shape;
  if (kind === "rms" && !bias) {
    graph.nodes(
      "SkipSimplifiedLayerNormalization",
      [a, b, weights.vector(name, size)],
      [names.normed, "", "", names.sum],
      { domain: "com.microsoft", attributes: { epsilon: { float: epsilon } } },
    );
    return;
  }
  graph.node("Add", [a, b], {}, names.sum);
  norm(graph, weights, names.sum, name, size, shape, names.normed);
}
