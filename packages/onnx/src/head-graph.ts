import { type Graph, GraphBuilder } from "./graph-builder.js";
import { type NormShape, norm } from "./norms.js";
import { inputWeights } from "./part-weights.js";

/** All that the graph behind the last layer depends on. */
export interface HeadShape {
  readonly hidden: number;
  readonly vocab: number;
  readonly norm: NormShape;
  readonly bias: boolean;
  /** Factor on the logits, bias included; absent: 1. */
  readonly logitScale?: number;
}

/**
 * The final norm and the language-model head.
 *
 * Inputs: `hidden` [R, hidden]; `norm` [hidden] and `normBias`; `head` [vocab, hidden] and `headBias` [vocab]; with
 * `score` also `picks` int64 [P, 2], pairs of a row and a token.
 *
 * Outputs: `logits` [R, vocab]; with `score` instead `logProbs` [P], the natural logarithm of the probability of
 * every pick, and `argmax` int32 [R], the most likely token (the lowest id among equals), so that [R, vocab] values
 * never leave the runtime.
 */
export function headGraph(shape: HeadShape, options: { readonly score: boolean }): Graph {
  const { hidden, vocab, bias, logitScale } = shape;
  const graph = new GraphBuilder("head");
  const weights = inputWeights(graph);
  const input = graph.input("hidden", ["R", hidden]);
  const normed = norm(graph, weights, input, "norm", hidden, shape.norm);
  weights.linear(normed, "head", [vocab, hidden], {
    bias,
    output: "logits",
    ...(logitScale !== undefined && { scale: logitScale }),
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
