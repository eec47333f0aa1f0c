import { type Graph, GraphBuilder } from "./graph-builder.js";

/**
 * The router of an MoE layer alone, as it is at the end of `attentionGraph`.
 * Inputs: `normed` [N, hidden]; `router` [E, hidden] and with `bias` `routerBias` [E]. Output: `logits` [N, E].
 */
export function routerGraph(hidden: number, { bias }: { readonly bias: boolean }): Graph {
  const graph = new GraphBuilder("router");
  const inputs = [graph.input("normed", ["N", hidden]), graph.input("router", ["E", hidden])];
  if (bias) inputs.push(graph.input("routerBias", ["E"]));
  graph.nodes("Gemm", inputs, ["logits"], { attributes: { transB: 1 } });
  graph.output("logits", ["N", "E"]);
  return graph.build();
}
