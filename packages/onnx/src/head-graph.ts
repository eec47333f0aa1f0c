import { rmsNorm } from "./attention-graph.js";
import { type Graph, GraphBuilder } from "./graph-builder.js";

/** All that the graph behind the last layer depends on. */
export interface HeadShape {
  readonly hidden: number;
  readonly vocab: number;
  readonly epsilon: number;
}

/**
 * The final norm and the language-model head.
 *
 * Inputs: `hidden` [R, hidden]; `norm` [hidden]; `head` [vocab, hidden]; with `score` also `picks` int64 [P, 2],
 * pairs of a row and a token.
 *
 * Outputs: `logits` [R, vocab]; with `score` instead `logProbs` [P], the natural logarithm of the probability of
 * every pick, and `argmax` int32 [R], the most likely token (the lowest id among equals), so that [R, vocab] values
 * never leave the runtime.
 */
export function headGraph(
  { hidden, vocab, epsilon }: HeadShape,
  options: { readonly score: boolean },
): Graph {
  const graph = new GraphBuilder("head");
  const input = graph.input("hidden", ["R", hidden]);
  const normed = rmsNorm(graph, input, graph.input("norm", [hidden]), epsilon);
  graph.nodes("Gemm", [normed, graph.input("head", [vocab, hidden])], ["logits"], {
    attributes: { transB: 1 },
  });
  if (!options.score) {
    graph.output("logits", ["R", vocab]);
    return graph.build();
  }
  const logProbs = graph.node("LogSoftmax", ["logits"], { attributes: { axis: -1 } });
  graph.nodes("GatherND", [logProbs, graph.input("picks", ["P", 2], "int64")], ["logProbs"]);
  const best = graph.node("ArgMax", ["logits"], { attributes: { axis: -1, keepdims: 0 } });
  graph.nodes("Cast", [best], ["argmax"], { attributes: { to: int32 } });
  graph.output("logProbs", ["P"]);
  graph.output("argmax", ["R"], "int32");
  return graph.build();
}

/** TensorProto.DataType.INT32 */
const int32 = 6;
