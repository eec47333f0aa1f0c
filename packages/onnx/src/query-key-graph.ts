import { operatorInputs } from "./attention-graph.js";
import { type GroupedQueryShape, operatorHeads } from "./attention-shape.js";
import { type Graph, GraphBuilder } from "./graph-builder.js";
import { norm } from "./norms.js";
import { inputWeights } from "./part-weights.js";

/**
 * Queries and keys of rows, positions turned into them, for whoever looks at them before attention: the beginning of
 * `attentionGraph`, whose inputs of the same names it takes behind a past.
 *
 * Outputs: `queries` [N, heads size], `keys` [N, kvHeads size] (`operatorHeads`).
 */
export function queryKeyGraph(shape: GroupedQueryShape): Graph {
  const graph = new GraphBuilder("queries and keys");
  const weights = inputWeights(graph);
  const input = graph.input("hidden", ["N", shape.hidden]);
  const normed = norm(graph, weights, input, "attentionNorm", shape.hidden, shape.attentionNorm);
  const { query, key } = operatorInputs(graph, weights, shape, normed, (rows) => rows, "before");
  const { kvHeads, size } = operatorHeads(shape);
  graph.nodes("Identity", [query], ["queries"]);
  graph.nodes("Identity", [key], ["keys"]);
  graph.output("queries", ["N", shape.heads * size]);
  graph.output("keys", ["N", kvHeads * size]);
  return graph.build();
}
