import type { GraphBuilder, Value } from "./graph-builder.js";

export interface Heads {
  readonly count: number;
  readonly headDim: number;
}

/**
 * Rotates the first `dimensions` of every head: i with i + dimensions / 2.
 * @param value [N, count headDim]
 * @param rotation cosines and sines of every row, [N, 1, dimensions / 2]
 */
export function rotateHeads(
  graph: GraphBuilder,
  value: Value,
  { count, headDim }: Heads,
  dimensions: number,
  [cos, sin]: readonly [Value, Value],
): Value {
  const heads = graph.node("Reshape", [value, graph.int64([-1, count, headDim])]);
  const half = dimensions / 2;
  const sizes = headDim > dimensions ? [half, half, headDim - dimensions] : [half, half];
  const parts = sizes.map(() => graph.name("part"));
  graph.nodes("Split", [heads, graph.int64(sizes)], parts, { attributes: { axis: 2 } });
  const [first, second, ...rest] = parts as [Value, Value, ...Value[]];
  const times = (part: Value, factor: Value) => graph.node("Mul", [part, factor]);
  const turned = [
    graph.node("Sub", [times(first, cos), times(second, sin)]),
    graph.node("Add", [times(second, cos), times(first, sin)]),
  ];
  const whole = graph.node("Concat", [...turned, ...rest], { attributes: { axis: 2 } });
  return graph.node("Reshape", [whole, graph.int64([-1, count * headDim])]);
}

/** Rotates the first `dimensions` of every head of rows [N, count headDim] by the positions of the rows. */
export type RotateHeads = (value: Value, heads: Heads, dimensions: number) => Value;

/**
 * `rotateHeads` by ONNX Runtime's operator, which takes few head sizes (`headLayout`) and is one node instead of ten.
 * @param tables cosines and sines of all positions, [M, dimensions / 2]
 * @param positions int64 [N, 1]
 */
export function operatorRotation(
  graph: GraphBuilder,
  [cos, sin]: readonly [Value, Value],
  positions: Value,
): RotateHeads {
  return (value, { count, headDim }, dimensions) => {
    const rows = graph.node("Reshape", [value, graph.int64([-1, 1, count * headDim])]);
    const turned = graph.node("RotaryEmbedding", [rows, positions, cos, sin], {
      domain: "com.microsoft",
      attributes: { num_heads: count, rotary_embedding_dim: dimensions, interleaved: 0 },
    });
    return graph.node("Reshape", [turned, graph.int64([-1, count * headDim])]);
  };
}

/**
 * Heads filled up with zeros to `size` dimensions, which change neither a product of query and key nor a sum of values.
 * @param value [N, count headDim]
 * @returns [N, count size]
 */
export function fillHeads(graph: GraphBuilder, value: Value, { count, headDim }: Heads, size: number): Value {
  if (size === headDim) return value;
  const heads = graph.node("Reshape", [value, graph.int64([-1, count, headDim])]);
  const larger = graph.node("Pad", [heads, graph.int64([0, 0, 0, 0, 0, size - headDim])]);
  return graph.node("Reshape", [larger, graph.int64([-1, count * size])]);
}

/** The first `wanted` of the `size` dimensions of every head: [N, heads size] -> [N, heads wanted]. */
export function cutHeads(
  graph: GraphBuilder,
  value: Value,
  heads: number,
  size: number,
  wanted: number,
): Value {
  if (wanted === size) return value;
  const split = graph.node("Reshape", [value, graph.int64([-1, heads, size])]);
  const cut = graph.node("Slice", [split, graph.int64([0]), graph.int64([wanted]), graph.int64([2])]);
  return graph.node("Reshape", [cut, graph.int64([-1, heads * wanted])]);
}

/** Rows [N, width] as the attention operator takes them, [B, S, width]. */
export type TokenRows = (value: Value, width: number) => Value;
