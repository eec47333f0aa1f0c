import type { GraphBuilder, Value } from "./graph-builder.js";
import { activate, downProjection, type MlpShape, mlp } from "./mlp.js";
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
  /** What layers share that see the same rows, by their top-k; filled by the first of them. */
  readonly counts: Map<number, ChoiceCounts>;
  /** Weights of one expert, by the names of `mlpParts`, and `gateUp`, gate with up below it. */
  weights(expert: number): PartWeights;
}

/** What depends on the number of choices alone, N topK; all int64. */
export interface ChoiceCounts {
  /** [1], that number. */
  readonly count: Value;
  /** As many ones. */
  readonly ones: Value;
  /** 0, 1, ... */
  readonly range: Value;
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
  const { count, ones, range } = choiceCounts(graph, flat, layer);
  const sorted = [graph.name("sorted"), graph.name("order")] as const;
  graph.nodes("TopK", [flat, count], sorted, { attributes: { axis: 0, largest: 0, sorted: 1 } });
  const [, order] = sorted;
  const none = graph.int64(Array.from({ length: layer.experts }, () => 0));
  const sizes = graph.node("ScatterElements", [none, flat, ones], {
    attributes: { axis: 0, reduction: "add" },
  });
  let rows = take(normed, graph.node("Div", [order, graph.int64([topK], [])]));
  if (scalesInput) {
    const column = graph.node("Reshape", [gates, graph.int64([-1, 1])]);
    rows = graph.node("Mul", [rows, take(column, order)]);
  }
  const all = mlpByExpert(graph, rows, sizes, layer);
  const places = graph.node("ScatterElements", [order, order, range], { attributes: { axis: 0 } });
  const back = graph.node("Reshape", [take(all, places), graph.int64([-1, topK, shape.hidden])]);
  const weighted = scalesInput
    ? back
    : graph.node("Mul", [back, graph.node("Unsqueeze", [gates, graph.int64([-1])])]);
  return graph.node("ReduceSum", [weighted, graph.int64([1])], { attributes: { keepdims: 0 } });
}

function choiceCounts(graph: GraphBuilder, flat: Value, { topK, counts }: ExpertLayer): ChoiceCounts {
  const known = counts.get(topK);
  if (known) return known;
  const count = graph.node("Shape", [flat]);
  const [zero, one] = [graph.int64([0], []), graph.int64([1], [])];
  const made = {
    count,
    ones: graph.node("Expand", [one, count]),
    range: graph.node("Range", [zero, graph.node("Squeeze", [count]), one]),
  };
  counts.set(topK, made);
  return made;
}

/**
 * The experts' MLPs of rows that are sorted by expert. Only matrices are multiplied expert by expert, gate and up as one,
 * and all else for all rows at once: at one token the operators that run for experts without a row take longer than the
 * others.
 * @param sizes int64 [experts], rows of each
 */
function mlpByExpert(graph: GraphBuilder, rows: Value, sizes: Value, layer: ExpertLayer): Value {
  const { shape, experts, weights } = layer;
  const { hidden, width, activation, biases } = shape;
  const each = (values: Value, run: (part: Value, expert: number) => Value) => {
    const parts = Array.from({ length: experts }, () => graph.name("rows"));
    graph.nodes("Split", [values, sizes], parts, { attributes: { axis: 0 } });
    return graph.node("Concat", parts.map(run), { attributes: { axis: 0 } });
  };
  let units: Value;
  if (activation.kind === "relu2") {
    const bias = biases.includes("upBias");
    const up = each(rows, (part, expert) => weights(expert).linear(part, "up", [width, hidden], { bias }));
    units = activate(graph, activation, up);
  } else {
    const bias = biases.includes("gateBias") || biases.includes("upBias");
    const both = each(rows, (part, expert) =>
      weights(expert).linear(part, "gateUp", [2 * width, hidden], { bias }),
    );
    const [gate, up] = [graph.name("gate"), graph.name("up")];
    graph.nodes("Split", [both, graph.int64([width, width])], [gate, up], { attributes: { axis: 1 } });
    units = activate(graph, activation, up, gate);
  }
  return each(units, (part, expert) => downProjection(weights(expert), part, shape));
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
