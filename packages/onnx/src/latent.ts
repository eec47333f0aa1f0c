import type { OperatorInputs } from "./attention-operator.js";
import { type LatentShape, operatorHeads } from "./attention-shape.js";
import type { GraphBuilder, Value } from "./graph-builder.js";
import { fillHeads, rotateHeads, type TokenRows } from "./heads.js";
import { norm } from "./norms.js";
import type { PartWeights } from "./part-weights.js";

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
  weights: PartWeights,
  shape: LatentShape,
  normed: Value,
  tokens: TokenRows,
  rotation: readonly [Value, Value],
): OperatorInputs {
  const { hidden, heads, nopeDim, rotaryDimensions: turning, valueDim, rank, queryDown } = shape;
  const { size } = operatorHeads(shape);
  const linear = (x: Value, name: string, outputs: number, inputs: number, bias: boolean) =>
    weights.linear(x, name, [outputs, inputs], { bias });
  const split = (value: Value, sizes: readonly [number, number], axis: number) => {
    const parts = [graph.name("part"), graph.name("part")] as const;
    graph.nodes("Split", [value, graph.int64(sizes)], parts, { attributes: { axis } });
    return parts;
  };
  const perHead = (value: Value, headDim: number) =>
    graph.node("Reshape", [value, graph.int64([-1, heads, headDim])]);
  const joined = (parts: readonly Value[]) => {
    const whole = graph.node("Concat", parts, { attributes: { axis: 2 } });
    return graph.node("Reshape", [whole, graph.int64([-1, heads * (nopeDim + turning)])]);
  };
  const turned = (value: Value, count: number) => {
    const rows = rotateHeads(graph, value, { count, headDim: turning }, turning, rotation);
    return graph.node("Reshape", [rows, graph.int64([-1, count, turning])]);
  };

  const queryRank = queryDown?.rank ?? hidden;
  let source = queryDown ? linear(normed, "queryDown", queryRank, hidden, queryDown.bias) : normed;
  if (shape.queryNorm) source = norm(graph, weights, source, "queryNorm", queryRank, shape.queryNorm);
  const queryDim = nopeDim + turning;
  const queries = linear(source, "query", heads * queryDim, queryRank, shape.queryBias);
  const [queryPlain, queryTurning] = split(perHead(queries, queryDim), [nopeDim, turning], 2);
  const query = joined([queryPlain, turned(queryTurning, heads)]);

  const down = linear(normed, "kvDown", rank + turning, hidden, shape.kvDownBias);
  const [narrow, keyTurning] = split(down, [rank, turning], 1);
  const latent = norm(graph, weights, narrow, "kvNorm", rank, shape.kvNorm);
  const up = linear(latent, "kvUp", heads * (nopeDim + valueDim), rank, shape.kvUpBias);
  const [keyPlain, values] = split(perHead(up, nopeDim + valueDim), [nopeDim, valueDim], 2);
  const shared = graph.node("Tile", [turned(keyTurning, 1), graph.int64([1, heads, 1])]);
  const key = joined([keyPlain, shared]);
  const value = graph.node("Reshape", [values, graph.int64([-1, heads * valueDim])]);
  const filled = (heads: Value, headDim: number) =>
    tokens(fillHeads(graph, heads, { count: shape.heads, headDim }, size), shape.heads * size);
  return {
    query: filled(query, queryDim),
    key: filled(key, queryDim),
    value: filled(value, valueDim),
  };
}
