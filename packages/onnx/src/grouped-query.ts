import type { OperatorInputs } from "./attention-operator.js";
import { type GroupedQueryShape, type HeadNormShape, operatorHeads } from "./attention-shape.js";
import type { GraphBuilder, Value } from "./graph-builder.js";
import { fillHeads, type RotateHeads, type TokenRows } from "./heads.js";
import { norm } from "./norms.js";
import type { PartWeights } from "./part-weights.js";

/**
 * Projections, norms, clip, rotation (unless the operator rotates) and temperature of grouped queries.
 *
 * Inputs: `qkv` [(heads + 2 kvHeads) headDim, hidden] (query, key and value weights one below the other) and
 * `qkvBias`; `queryNorm`, `keyNorm`, [headDim] or over a projection [heads headDim], and their biases; `temperature`
 * [N, 1], the factor of every row's query.
 * @param together whether queries may be given with keys and values behind them
 */
export function groupedQueryInputs(
  graph: GraphBuilder,
  weights: PartWeights,
  shape: GroupedQueryShape,
  normed: Value,
  tokens: TokenRows,
  rotate: RotateHeads | undefined,
  together = true,
): OperatorInputs {
  const { hidden, heads, kvHeads, headDim, queryNorm, keyNorm, clip } = shape;
  const { size } = operatorHeads(shape);
  const width = (heads + 2 * kvHeads) * headDim;
  const qkv = weights.linear(normed, "qkv", [width, hidden], { bias: shape.inputBias });
  const limited = (value: Value) =>
    clip === undefined ? value : graph.node("Clip", [value, graph.float32(-clip), graph.float32(clip)]);
  if (together && !queryNorm && !keyNorm && !shape.temperature && !rotate && size === headDim) {
    return { query: tokens(limited(qkv), width), key: "", value: "" };
  }
  const sizes = graph.int64([heads * headDim, kvHeads * headDim, kvHeads * headDim]);
  const parts = ["query", "key", "value"].map((name) => graph.name(name)) as [Value, Value, Value];
  graph.nodes("Split", [qkv, sizes], parts, { attributes: { axis: 1 } });
  let query = prepared(parts[0], "queryNorm", heads, queryNorm);
  if (shape.temperature) query = graph.node("Mul", [query, graph.input("temperature", ["N", 1])]);
  const filled = (value: Value, count: number) =>
    tokens(fillHeads(graph, value, { count, headDim }, size), count * size);
  return {
    query: filled(query, heads),
    key: filled(prepared(parts[1], "keyNorm", kvHeads, keyNorm), kvHeads),
    value: filled(limited(parts[2]), kvHeads),
  };

  /** [N, count headDim] */
  function prepared(value: Value, name: string, count: number, spec: HeadNormShape | undefined): Value {
    const normalize = (values: Value) =>
      spec ? headNorm(graph, weights, values, name, count, headDim, spec) : values;
    const turn = (values: Value) =>
      rotate ? rotate(values, { count, headDim }, shape.rotaryDimensions) : values;
    return shape.normAfterRotary ? normalize(turn(limited(value))) : turn(limited(normalize(value)));
  }
}

function headNorm(
  graph: GraphBuilder,
  weights: PartWeights,
  value: Value,
  name: string,
  count: number,
  headDim: number,
  shape: HeadNormShape,
): Value {
  if (shape.over === "projection") return norm(graph, weights, value, name, count * headDim, shape);
  const split = graph.node("Reshape", [value, graph.int64([-1, count, headDim])]);
  const normed = norm(graph, weights, split, name, headDim, shape);
  return graph.node("Reshape", [normed, graph.int64([-1, count * headDim])]);
}
