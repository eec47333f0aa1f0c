import { type Graph, GraphBuilder, type Value } from "./graph-builder.js";

/** All that the graph of a gated MLP depends on, whether expert or dense. */
export interface MlpShape {
  readonly hidden: number;
  /** Rows of gate and up. */
  readonly width: number;
}

export interface MoeGraphOptions {
  /** Experts of the graph. Leave out those that no token chose: an empty expert still costs its operators. */
  readonly slots: number;
  readonly topK: number;
  /** Give the unweighted expert outputs as well. */
  readonly expertOutputs: boolean;
}

/**
 * The experts of an MoE layer over tokens that are already routed: gather each expert's tokens, run the expert on
 * them, and let every token add up what its experts gave. No expert sees a token that did not choose it.
 *
 * M = N topK is the number of (token, expert) choices, sorted by slot. Weights are inputs, so one session serves
 * every layer of a shape and every plan: a merged expert is just another array.
 *
 * Inputs: `normed`, `residual` [N, hidden]; `rows` int32 [M], the token of every choice; `sizes` int64 [slots], how
 * many choices each slot has; `places` int32 [topK, N], where in `rows` the choices of a token are; `gates`
 * [topK, N, 1], their gate weights; for every slot i `gate<i>`, `up<i>` [width, hidden] and `down<i>` [hidden, width].
 *
 * Outputs: `result` [N, hidden], the residual plus the gate-weighted expert outputs; on request `expertOutputs`
 * [M, hidden], unweighted, in the order of `rows`.
 */
export function moeGraph({ hidden, width }: MlpShape, options: MoeGraphOptions): Graph {
  const { slots, topK } = options;
  const graph = new GraphBuilder("moe");
  const normed = graph.input("normed", ["N", hidden]);
  let result = graph.input("residual", ["N", hidden]);
  const rows = graph.input("rows", ["M"], "int32");
  const names = Array.from({ length: slots }, (_, slot) => `rows${slot}`);
  graph.nodes("Split", [rows, graph.input("sizes", [slots], "int64")], names, { attributes: { axis: 0 } });
  const parts = names.map((name, slot) =>
    gatedMlp(
      graph,
      take(graph, normed, name),
      graph.input(`gate${slot}`, [width, hidden]),
      graph.input(`up${slot}`, [width, hidden]),
      graph.input(`down${slot}`, [hidden, width]),
    ),
  );
  graph.nodes("Concat", parts, ["expertOutputs"], { attributes: { axis: 0 } });
  const places = graph.input("places", [topK, "N"], "int32");
  const gates = graph.input("gates", [topK, "N", 1]);
  // One pass per rank of choice: half the time of scattering every expert's rows onto the residual.
  for (let rank = 0; rank < topK; rank++) {
    const index = graph.int64([rank], []);
    const output = take(graph, "expertOutputs", take(graph, places, index));
    const weighted = graph.node("Mul", [output, take(graph, gates, index)]);
    result = graph.node("Add", [result, weighted]);
  }
  graph.nodes("Identity", [result], ["result"]);
  graph.output("result", ["N", hidden]);
  if (options.expertOutputs) graph.output("expertOutputs", ["M", hidden]);
  return graph.build();
}

function take(graph: GraphBuilder, values: Value, rows: Value): Value {
  return graph.node("Gather", [values, rows], { attributes: { axis: 0 } });
}

/**
 * The MLP of a dense layer.
 * Inputs: `normed`, `residual` [N, hidden]; `gate`, `up` [width, hidden]; `down` [hidden, width].
 * Output: `result` [N, hidden], the residual plus the MLP of `normed`.
 */
export function denseGraph({ hidden, width }: MlpShape): Graph {
  const graph = new GraphBuilder("dense");
  const normed = graph.input("normed", ["N", hidden]);
  const residual = graph.input("residual", ["N", hidden]);
  const gate = graph.input("gate", [width, hidden]);
  const up = graph.input("up", [width, hidden]);
  const output = gatedMlp(graph, normed, gate, up, graph.input("down", [hidden, width]));
  graph.nodes("Add", [residual, output], ["result"]);
  graph.output("result", ["N", hidden]);
  return graph.build();
}

/** `down(silu(gate(x)) * up(x))` with weights [out, in], as checkpoints store them. */
export function gatedMlp(graph: GraphBuilder, x: Value, gate: Value, up: Value, down: Value): Value {
  const attributes = { transB: 1 };
  const gated = graph.node("Gemm", [x, gate], { attributes });
  const silu = graph.node("Mul", [gated, graph.node("Sigmoid", [gated])]);
  const product = graph.node("Mul", [silu, graph.node("Gemm", [x, up], { attributes })]);
  return graph.node("Gemm", [product, down], { attributes });
}
