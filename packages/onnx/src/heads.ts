import type { GraphBuilder, Value } from "./graph-builder.js";

export interface Heads {
  readonly count: number;
  readonly headDim: number;
}

/**
 * Rotates the first `dimensions` of every head: i with i + dimensions / 2.
 * @param value [N, count headDim]
 * @param name unused so far in the graph
 * @param rotation cosines and sines of every row, [N, 1, dimensions / 2]
 */
export function rotateHeads(
  graph: GraphBuilder,
  value: Value,
  name: string,
  { count, headDim }: Heads,
  dimensions: number,
  [cos, sin]: readonly [Value, Value],
): Value {
  const heads = graph.node("Reshape", [value, graph.int64([-1, count, headDim])]);
  const half = dimensions / 2;
  const sizes = headDim > dimensions ? [half, half, headDim - dimensions] : [half, half];
  const parts = sizes.map((_, i) => `${name}Part${i}`);
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

/**
 * Rows as the attention operator takes them: heads filled up with zeros to `size` dimensions, which change neither a
 * product of query and key nor a sum of values, and then the rows of all padded tokens.
 * @param value [N, count headDim]
 * @returns [B, S, count size]
 */
export function padTokens(
  graph: GraphBuilder,
  value: Value,
  { count, headDim }: Heads,
  { size, pad }: { readonly size: number; readonly pad: Value },
): Value {
  let filled = value;
  if (size > headDim) {
    const heads = graph.node("Reshape", [value, graph.int64([-1, count, headDim])]);
    const larger = graph.node("Pad", [heads, graph.int64([0, 0, 0, 0, 0, size - headDim])]);
    filled = graph.node("Reshape", [larger, graph.int64([-1, count * size])]);
  }
  return graph.node("Gather", [filled, pad], { attributes: { axis: 0 } });
}
