import type { GraphBuilder, Value } from "./graph-builder.js";
import { type MlpShape, mlp } from "./mlp.js";
import type { PartWeights } from "./part-weights.js";
import type { Choices } from "./routing-nodes.js";

/**
 * How the experts of a layer run.
 *
 * - `grouped`: choices are sorted by expert, every expert runs on the rows that chose it: no work is wasted
 * - `dense`: every expert runs on all rows and what was not chosen counts 0, for targets without operators whose results
 *   differ in size from run to run
 */
export type ExpertForm = "grouped" | "dense";

export interface ExpertLayer {
  readonly shape: MlpShape;
  readonly experts: number;
  readonly topK: number;
  /** Gate weights multiply what experts read instead of what they give. */
  readonly scalesInput: boolean;
  /** Weights of one expert, by the names of `mlpParts`. */
  weights(expert: number): PartWeights;
}

/** What the routed experts give together, [N, hidden]. @param normed [N, hidden] */
export function expertNodes(
  graph: GraphBuilder,
  normed: Value,
  choices: Choices,
  layer: ExpertLayer,
  form: ExpertForm,
): Value {
  return form === "grouped" ? grouped(graph, normed, choices, layer) : dense(graph, normed, choices, layer);
}

function grouped(graph: GraphBuilder, normed: Value, { experts, gates }: Choices, layer: ExpertLayer): Value {
  const { shape, topK, scalesInput } = layer;
  const take = (values: Value, rows: Value) =>
    graph.node("Gather", [values, rows], { attributes: { axis: 0 } });
  const flat = graph.node("Reshape", [experts, graph.int64([-1])]);
  const count = graph.node("Shape", [flat]);
  const sorted = [graph.name("sorted"), graph.name("order")] as const;
  graph.nodes("TopK", [flat, count], sorted, { attributes: { axis: 0, largest: 0, sorted: 1 } });
  const [, order] = sorted;
  const ones = graph.node("Expand", [graph.int64([1]), count]);
  const none = graph.int64(Array.from({ length: layer.experts }, () => 0));
  const sizes = graph.node("ScatterElements", [none, flat, ones], {
    attributes: { axis: 0, reduction: "add" },
  });
  let rows = take(normed, graph.node("Div", [order, graph.int64([topK], [])]));
  if (scalesInput) {
    const column = graph.node("Reshape", [gates, graph.int64([-1, 1])]);
    rows = graph.node("Mul", [rows, take(column, order)]);
  }
  const parts = Array.from({ length: layer.experts }, () => graph.name("rows"));
  graph.nodes("Split", [rows, sizes], parts, { attributes: { axis: 0 } });
  const outputs = parts.map((part, expert) => mlp(graph, layer.weights(expert), part, shape));
  const all = graph.node("Concat", outputs, { attributes: { axis: 0 } });
  const zero = graph.int64([0], []);
  const range = graph.node("Range", [zero, graph.node("Size", [flat]), graph.int64([1], [])]);
  const places = graph.node("ScatterElements", [order, order, range], { attributes: { axis: 0 } });
  const back = graph.node("Reshape", [take(all, places), graph.int64([-1, topK, shape.hidden])]);
  const weighted = scalesInput
    ? back
    : graph.node("Mul", [back, graph.node("Unsqueeze", [gates, graph.int64([-1])])]);
  return graph.node("ReduceSum", [weighted, graph.int64([1])], { attributes: { keepdims: 0 } });
}

function dense(graph: GraphBuilder, normed: Value, { experts, gates }: Choices, layer: ExpertLayer): Value {
  const { shape, scalesInput } = layer;
  const zeros = graph.node("Expand", [
    graph.float32(0),
    graph.node(
      "Concat",
      [graph.node("Shape", [gates], { attributes: { start: 0, end: 1 } }), graph.int64([layer.experts])],
      { attributes: { axis: 0 } },
    ),
  ]);
  const spread = graph.node("ScatterElements", [zeros, experts, gates], { attributes: { axis: 1 } });
  const columns = Array.from({ length: layer.experts }, () => graph.name("gate"));
  graph.nodes("Split", [spread], columns, { attributes: { axis: 1, num_outputs: layer.experts } });
  let sum: Value | undefined;
  for (const [expert, gate] of columns.entries()) {
    const weights = layer.weights(expert);
    const times = (value: Value) => graph.node("Mul", [value, gate]);
    const output = scalesInput
      ? mlp(graph, weights, times(normed), shape)
      : times(mlp(graph, weights, normed, shape));
    sum = sum === undefined ? output : graph.node("Add", [sum, output]);
  }
  return sum as Value;
}
