import { attentionOperator, type OperatorInputs } from "./attention-operator.js";
import { type AttentionShape, operatorHeads } from "./attention-shape.js";
import { type Graph, GraphBuilder, type Value } from "./graph-builder.js";
import { groupedQueryInputs } from "./grouped-query.js";
import { cutHeads, type TokenRows } from "./heads.js";
import { latentInputs } from "./latent.js";
import { addAndNorm, norm } from "./norms.js";
import { inputWeights } from "./part-weights.js";

export interface AttentionGraphOptions {
  /** Take earlier keys and values (`pastKey`, `pastValue`) and give the extended ones. */
  readonly cache: boolean;
  /** Give only some rows of the result: the input `select` names their rows in `hidden`. */
  readonly select: boolean;
  /** Take `mask`, which is added to the scores. */
  readonly masked: boolean;
  /** Give the attention that every position receives as well; takes `queries`. */
  readonly received?: true;
}

/**
 * Everything of a decoder layer before its experts, over packed rows: norm, attention with rotary positions,
 * residual, norm, router. Weights are inputs, so that one session serves all layers of a shape.
 *
 * N rows of hidden states belong to B sequences, padded to S tokens only around the attention operator itself;
 * several padded tokens may name the same row. P positions of past lie right-padded in the cache. A head of the
 * operator has `size` dimensions (`operatorHeads`).
 *
 * Inputs: `hidden` [N, hidden]; `attentionNorm`, `feedForwardNorm` [hidden] and where the norms have them
 * `attentionNormBias`, `feedForwardNormBias`; those of `groupedQueryInputs` or `latentInputs`; `output` [hidden, heads
 * dimensions of a value] and `outputBias`; `router` [E, hidden] and `routerBias` [E]; `pad` int32 [B, S], the row of
 * every padded token; `unpad` int32 [R], the padded token of every result row; `select` int32 [R]; `lengths` int32
 * [B], past and present tokens of each sequence less one; `total` int32 [], the most tokens of a sequence; `cos`, `sin`
 * [M, rotaryDimensions / 2] with M >= total; `sinks` [heads]; `mask` [B, 1, S, total]; `queries` bool
 * [B, 1, S, 1], false for padding; with a cache `pastKey`, `pastValue` [B, kvHeads, P, size].
 *
 * Outputs: `normed` [R, hidden], what the feed-forward block reads; `residual` [R, hidden], what is added to its
 * result; `logits` [R, E]; on request `received` [B, total], the attention probabilities of every position summed over
 * heads and `queries`, with anything behind the last position of a sequence; with a cache `presentKey`, `presentValue` [B, kvHeads, max(P, total), size].
 *
 * Operators: ONNX Runtime's GroupQueryAttention (causal; `mask`, windows and sinks are inputs and attributes of it),
 * SimplifiedLayerNormalization (root mean square) and SkipSimplifiedLayerNormalization.
 */
export function attentionGraph(shape: AttentionShape, options: AttentionGraphOptions): Graph {
  const { hidden, heads } = shape;
  const { kvHeads, size } = operatorHeads(shape);
  const graph = new GraphBuilder("attention");
  const weights = inputWeights(graph);
  const rows = options.select ? "R" : "N";
  const input = graph.input("hidden", ["N", hidden]);
  const normed = norm(graph, weights, input, "attentionNorm", hidden, shape.attentionNorm);
  const pad = graph.input("pad", ["B", "S"], "int32");
  // Several padded tokens may name the same row.
  const tokens: TokenRows = (value) => graph.node("Gather", [value, pad], { attributes: { axis: 0 } });
  const tables = (): [Value, Value] => {
    const size = ["M", shape.rotaryDimensions / 2];
    return [graph.input("cos", size), graph.input("sin", size)];
  };
  let turns: readonly [Value, Value] = ["", ""];
  let inputs: OperatorInputs;
  if (shape.kind === "mla") {
    inputs = latentInputs(graph, weights, shape, normed, tokens, ofRows(graph, tables()));
  } else if (shape.rotation === "operator") {
    turns = tables();
    inputs = groupedQueryInputs(graph, weights, shape, normed, tokens, undefined);
  } else {
    const rotation = shape.rotaryDimensions > 0 ? ofRows(graph, tables()) : undefined;
    inputs = groupedQueryInputs(graph, weights, shape, normed, tokens, rotation);
  }

  const past = (name: string) => (options.cache ? graph.input(name, ["B", kvHeads, "P", size]) : "");
  const [pastKey, pastValue] = [past("pastKey"), past("pastValue")];
  const lengths = graph.input("lengths", ["B"], "int32");
  const total = graph.input("total", [], "int32");
  const mask = options.masked ? graph.input("mask", ["B", 1, "S", "T"]) : "";
  const sinks = shape.kind === "gqa" && shape.sinks ? graph.input("sinks", [heads]) : "";
  const [cos, sin] = turns;
  const state = { pastKey, pastValue, lengths, total, cos, sin, mask, sinks };
  attentionOperator(graph, shape, inputs, state, attentionOutputs(options));
  const flat = graph.node("Reshape", ["attended", graph.int64([-1, heads * size])]);
  const unpad = graph.input("unpad", [rows], "int32");
  const gathered = graph.node("Gather", [flat, unpad], { attributes: { axis: 0 } });
  const valueDim = shape.kind === "gqa" ? shape.headDim : shape.valueDim;
  const attended = cutHeads(graph, gathered, heads, size, valueDim);
  const projected = weights.linear(attended, "output", [hidden, heads * valueDim], {
    bias: shape.outputBias,
  });
  const skip = options.select
    ? graph.node("Gather", [input, graph.input("select", ["R"], "int32")], { attributes: { axis: 0 } })
    : input;
  const names = { sum: "residual", normed: "normed" };
  addAndNorm(graph, weights, [projected, skip], "feedForwardNorm", hidden, shape.feedForwardNorm, names);
  graph.output("normed", [rows, hidden]);
  graph.output("residual", [rows, hidden]);
  if (shape.router) {
    const { bias } = shape.router;
    weights.linear("normed", "router", ["E", hidden], { bias, output: "logits" });
    graph.output("logits", [rows, "E"]);
  }
  if (options.received) {
    // Chosen and not multiplied: the operator leaves padding as it finds it, with values that may be no numbers.
    const queries = graph.input("queries", ["B", 1, "S", 1], "bool");
    const real = graph.node("Where", [queries, "probabilities", graph.float32(0)]);
    graph.nodes("ReduceSum", [real, graph.int64([1, 2])], ["received"], { attributes: { keepdims: 0 } });
    graph.output("received", ["B", "T"]);
  }
  if (options.cache) {
    graph.output("presentKey", ["B", kvHeads, "Q", size]);
    graph.output("presentValue", ["B", kvHeads, "Q", size]);
  }
  return graph.build();
}

function attentionOutputs({ cache, received }: AttentionGraphOptions): readonly string[] {
  // Without a cache the operator is spared writing keys and values a second time, up to half of its time.
  const present = cache ? ["presentKey", "presentValue"] : [];
  return received ? ["attended", ...(cache ? present : ["", ""]), "probabilities"] : ["attended", ...present];
}

/** Cosines and sines of every row, [N, 1, rotaryDimensions / 2], by the input `positions` int32 [N]. */
function ofRows(graph: GraphBuilder, [cos, sin]: readonly [Value, Value]): readonly [Value, Value] {
  const positions = graph.input("positions", ["N"], "int32");
  const rows = (table: Value) => {
    const taken = graph.node("Gather", [table, positions], { attributes: { axis: 0 } });
    return graph.node("Unsqueeze", [taken, graph.int64([1])]);
  };
  return [rows(cos), rows(sin)];
}
