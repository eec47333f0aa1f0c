import type { OperatorInputs } from "./attention-graph.js";
import { type LatentShape, operatorHeads } from "./attention-shape.js";
import type { GraphBuilder, Value } from "./graph-builder.js";
import { padTokens, rotateHeads } from "./heads.js";
import { norm } from "./norms.js";

/**
 * Queries, keys and values of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), with keys and
 * values of every head written out.
 *
 * Inputs: `queryDown` [queryRank, hidden] and `queryNorm` [queryRank] where queries come from a low rank; `query`
 * [heads (nopeDim + rotaryDimensions), hidden or queryRank]; `kvDown` [rank + rotaryDimensions, hidden]; `kvNorm` [rank];
 * `kvUp` [heads (nopeDim + valueDim), rank]; their biases under the same names with `Bias` behind them. Rotating
 * dimensions are laid out half by half: i turns with i + rotaryDimensions / 2.
 */
export function latentInputs(
  graph: GraphBuilder,
  shape: LatentShape,
  normed: Value,
  pad: Value,
  rotation: readonly [Value, Value],
): OperatorInputs {
  const { hidden, heads, nopeDim, rotaryDimensions: turning, valueDim, rank, queryDown } = shape;
  const { size } = operatorHeads(shape);
  const linear = (x: Value, name: string, outputs: number, inputs: number, bias: boolean) => {
    const weights = [graph.input(name, [outputs, inputs])];
    if (bias) weights.push(graph.input(`${name}Bias`, [outputs]));
    return graph.node("Gemm", [x, ...weights], { attributes: { transB: 1 } });
  };
  const split = (value: Value, sizes: readonly number[], names: readonly string[], axis: number) => {
    graph.nodes("Split", [value, graph.int64(sizes)], names, { attributes: { axis } });
  };
  const perHead = (value: Value, headDim: number) =>
    graph.node("Reshape", [value, graph.int64([-1, heads, headDim])]);
  const joined = (parts: readonly Value[]) => {
    const whole = graph.node("Concat", parts, { attributes: { axis: 2 } });
    return graph.node("Reshape", [whole, graph.int64([-1, heads * (nopeDim + turning)])]);
  };
  const turned = (value: Value, name: string, count: number) => {
    const rows = rotateHeads(graph, value, name, { count, headDim: turning }, turning, rotation);
    return graph.node("Reshape", [rows, graph.int64([-1, count, turning])]);
  };

  const queryRank = queryDown?.rank ?? hidden;
  let source = queryDown ? linear(normed, "queryDown", queryRank, hidden, queryDown.bias) : normed;
  if (shape.queryNorm) source = norm(graph, source, "queryNorm", queryRank, shape.queryNorm);
  const queryDim = nopeDim + turning;
  const queries = linear(source, "query", heads * queryDim, queryRank, shape.queryBias);
  split(perHead(queries, queryDim), [nopeDim, turning], ["queryPlain", "queryTurning"], 2);
  const query = joined(["queryPlain", turned("queryTurning", "queryTurned", heads)]);

  const down = linear(normed, "kvDown", rank + turning, hidden, shape.kvDownBias);
  split(down, [rank, turning], ["latent", "keyTurning"], 1);
  const latent = norm(graph, "latent", "kvNorm", rank, shape.kvNorm);
  const up = linear(latent, "kvUp", heads * (nopeDim + valueDim), rank, shape.kvUpBias);
  split(perHead(up, nopeDim + valueDim), [nopeDim, valueDim], ["keyPlain", "values"], 2);
  const shared = graph.node("Tile", [turned("keyTurning", "keyTurned", 1), graph.int64([1, heads, 1])]);
  const key = joined(["keyPlain", shared]);
  const value = graph.node("Reshape", ["values", graph.int64([-1, heads * valueDim])]);
  const place = { size, pad };
  return {
    query: padTokens(graph, query, { count: heads, headDim: queryDim }, place),
    key: padTokens(graph, key, { count: heads, headDim: queryDim }, place),
    value: padTokens(graph, value, { count: heads, headDim: valueDim }, place),
  };
}
