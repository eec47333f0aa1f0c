import { type Graph, GraphBuilder, type Value } from "./graph-builder.js";
import { type MlpShape, mlp } from "./mlp.js";
import { inputWeights } from "./part-weights.js";

export interface MoeGraphOptions {
  /** Experts of the graph. Leave out those that no token chose: an empty expert still costs its operators. */
  readonly slots: number;
  readonly topK: number;
  /** Give the unweighted expert outputs as well. */
  readonly expertOutputs: boolean;
  /** Give their L2 norms as well. */
  readonly expertNorms?: true;
  /** Gate weights multiply what experts read instead of what they give (Llama-4). */
  readonly scalesInput?: true;
  /** Factor on what is added to the residual; absent: 1. */
  readonly residualScale?: number;
  /** Some choices do not run: `places` may hold M, which stands for a row of zeros behind the others. */
  readonly skips?: true;
  /** The outputs of some choices are known: `places` 0 to K - 1 stand for rows of `known`, those of `rows` come behind. */
  readonly known?: true;
}

/**
 * The experts of an MoE layer over tokens that are already routed: gather each expert's tokens, run the expert on
 * them, and let every token add up what its experts gave. No expert sees a token that did not choose it.
 *
 * M is the number of (token, expert) choices that run, N topK of them without `skips`, sorted by slot. Weights are inputs, so one session serves
 * every layer of a shape and every plan: a merged expert is just another array.
 *
 * Inputs: `normed`, `residual` [N, hidden]; `rows` int32 [M], the token of every choice; `sizes` int64 [slots], how
 * many choices each slot has; `places` int32 [topK, N], where in `rows` the choices of a token are; `gates`
 * [topK, N, 1], their gate weights, or with `scalesInput` [M, 1] in the order of `rows`; for every slot i the weights
 * of `mlp` with i behind their names; with `known`, `known` [K, hidden], unweighted outputs.
 *
 * Outputs: `result` [N, hidden], the residual plus the gate-weighted expert outputs; on request `expertOutputs`
 * [O, hidden], unweighted: those of `known`, those of `rows` in their order, with `skips` a row of zeros; on request
 * `expertNorms` [O], their L2 norms.
 */
export function moeGraph(shape: MlpShape, options: MoeGraphOptions): Graph {
  const { hidden } = shape;
  const { slots, topK, scalesInput, residualScale } = options;
  const graph = new GraphBuilder("moe");
  const normed = graph.input("normed", ["N", hidden]);
  let result = graph.input("residual", ["N", hidden]);
  const rows = graph.input("rows", ["M"], "int32");
  const sizes = graph.input("sizes", [slots], "int64");
  const names = split(rows, "rows");
  const gates = graph.input("gates", scalesInput ? ["M", 1] : [topK, "N", 1]);
  const inputGates = scalesInput && split(gates, "gates");
  const parts = names.map((name, slot) => {
    const tokens = take(graph, normed, name);
    const gate = inputGates?.[slot];
    const read = gate === undefined ? tokens : graph.node("Mul", [tokens, gate]);
    return mlp(graph, inputWeights(graph, `${slot}`), read, shape);
  });
  if (options.known) parts.unshift(graph.input("known", ["K", hidden]));
  // No row of another choice will do in its place: what is not a number there would not become 0.
  if (options.skips) parts.push(graph.node("ConstantOfShape", [graph.int64([1, hidden])]));
  graph.nodes("Concat", parts, ["expertOutputs"], { attributes: { axis: 0 } });
  const places = graph.input("places", [topK, "N"], "int32");
  // One pass per rank of choice: half the time of scattering every expert's rows onto the residual.
  for (let rank = 0; rank < topK; rank++) {
    const index = graph.int64([rank], []);
    let output = take(graph, "expertOutputs", take(graph, places, index));
    if (!scalesInput) output = graph.node("Mul", [output, take(graph, gates, index)]);
    if (residualScale !== undefined) output = graph.node("Mul", [output, graph.float32(residualScale)]);
    result = graph.node("Add", [result, output]);
  }
  graph.nodes("Identity", [result], ["result"]);
  graph.output("result", ["N", hidden]);
  if (options.expertOutputs) graph.output("expertOutputs", ["O", hidden]);
  if (options.expertNorms) {
    const attributes = { keepdims: 0 };
    graph.nodes("ReduceL2", ["expertOutputs", graph.int64([1])], ["expertNorms"], { attributes });
    graph.output("expertNorms", ["O"]);
  }
  return graph.build();

  function split(values: Value, name: string): Value[] {
    const parts = Array.from({ length: slots }, (_, slot) => `${name}${slot}`);
    graph.nodes("Split", [values, sizes], parts, { attributes: { axis: 0 } });
    return parts;
  }
}

function take(graph: GraphBuilder, values: Value, rows: Value): Value {
  return graph.node("Gather", [values, rows], { attributes: { axis: 0 } });
}

export interface DenseGraphOptions {
  /** Take `projection` [1, hidden]: the MLP's output is multiplied by its sigmoid (Qwen2-MoE's shared expert). */
  readonly gated?: boolean;
  /** Factor on what is added to the residual; absent: 1. */
  readonly residualScale?: number;
}

/**
 * An MLP that every token goes through: that of a dense layer, or a shared expert.
 * Inputs: `normed`, `residual` [N, hidden]; the weights of `mlp`.
 * Output: `result` [N, hidden], the residual plus the MLP of `normed`.
 */
export function denseGraph(shape: MlpShape, { gated, residualScale }: DenseGraphOptions = {}): Graph {
  const { hidden } = shape;
  const graph = new GraphBuilder("dense");
  const weights = inputWeights(graph);
  const normed = graph.input("normed", ["N", hidden]);
  const residual = graph.input("residual", ["N", hidden]);
  let output = mlp(graph, weights, normed, shape);
  if (gated) {
    const projected = weights.linear(normed, "projection", [1, hidden]);
    output = graph.node("Mul", [output, graph.node("Sigmoid", [projected])]);
  }
  if (residualScale !== undefined) output = graph.node("Mul", [output, graph.float32(residualScale)]);
  graph.nodes("Add", [residual, output], ["result"]);
  graph.output("result", ["N", hidden]);
  return graph.build();
}
