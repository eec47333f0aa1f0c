import type { OperatorInputs } from "./attention-graph.js";
import { type GroupedQueryShape, type HeadNormShape, operatorHeads } from "./attention-shape.js";
import type { GraphBuilder, Value } from "./graph-builder.js";
import { padTokens, rotateHeads } from "./heads.js";
import { norm } from "./norms.js";

/**
 * Projections, norms, clip, rotation (unless the operator rotates) and temperature of grouped queries.
 *
 * Inputs: `qkv` [(heads + 2 kvHeads) headDim, hidden] (query, key and value weights one below the other) and
 * `qkvBias`; `queryNorm`, `keyNorm`, [headDim] or over a projection [heads headDim], and their biases; `temperature`
 * [N, 1], the factor of every row's query.
 */
export function groupedQueryInputs(
  graph: GraphBuilder,
  shape: GroupedQueryShape,
  normed: Value,
  pad: Value,
  rotation: readonly [Value, Value] | undefined,
): OperatorInputs {
  const { hidden, heads, kvHeads, headDim, queryNorm, keyNorm, clip } = shape;
  const { size } = operatorHeads(shape);
  const width = (heads + 2 * kvHeads) * headDim;
  const weights = [graph.input("qkv", [width, hidden])];
  if (shape.inputBias) weights.push(graph.input("qkvBias", [width]));
  const qkv = graph.node("Gemm", [normed, ...weights], { attributes: { transB: 1 } });
  const limited = (value: Value) =>
    clip === undefined ? value : graph.node("Clip", [value, graph.float32(-clip), graph.float32(clip)]);
  if (!queryNorm && !keyNorm && !shape.temperature && !rotation && size === headDim) {
    const query = graph.node("Gather", [limited(qkv), pad], { attributes: { axis: 0 } });
    return { query, key: "", value: "" };
  }
  const sizes = graph.int64([heads * headDim, kvHeads * headDim, kvHeads * headDim]);
  graph.nodes("Split", [qkv, sizes], ["query", "key", "value"], { attributes: { axis: 1 } });
  let query = prepared("query", "queryNorm", heads, queryNorm);
  if (shape.temperature) query = graph.node("Mul", [query, graph.input("temperature", ["N", 1])]);
  return {
    query: padTokens(graph, query, { count: heads, headDim }, { size, pad }),
    key: forKeys(prepared("key", "keyNorm", kvHeads, keyNorm)),
    value: forKeys(limited("value")),
  };

  function forKeys(value: Value): Value {
    return padTokens(graph, value, { count: kvHeads, headDim }, { size, pad });
  }

  /** [N, count headDim] */
  function prepared(value: Value, name: string, count: number, spec: HeadNormShape | undefined): Value {
    const normalize = (values: Value) =>
      spec ? headNorm(graph, values, name, count, headDim, spec) : values;
    const turn = (values: Value) =>
      rotation
        ? rotateHeads(graph, values, `${name}Turned`, { count, headDim }, shape.rotaryDimensions, rotation)
        : values;
    return shape.normAfterRotary ? normalize(turn(limited(value))) : turn(limited(normalize(value)));
  }
}

function headNorm(
  graph: GraphBuilder,
  value: Value,
  name: string,
  count: number,
  headDim: number,
  shape: HeadNormShape,
): Value {
  if (shape.over === "projection") return norm(graph, value, name, count * headDim, shape);
  const split = graph.node("Reshape", [value, graph.int64([-1, count, headDim])]);
  const normed = norm(graph, split, name, headDim, shape);
  return graph.node("Reshape", [normed, graph.int64([-1, count * headDim])]);
}
