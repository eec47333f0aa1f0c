import type { GraphBuilder, Value } from "./graph-builder.js";

/** Keys and values of one new token of every sequence, and the earlier ones as they lie in memory. */
export interface PlacesInputs {
  /** [B, kvHeads, share, size], for each KV head the query heads that share it. */
  readonly query: Value;
  /** [B, kvHeads, P, size] */
  readonly pastKey: Value;
  readonly pastValue: Value;
  /** [B, kvHeads, 1, size] */
  readonly key: Value;
  readonly value: Value;
  /** Added to the scores of all places and the new token, [.., P + 1]; `""`: nothing. */
  readonly mask: Value;
  /** [1, kvHeads, share, 1]; `""`: none. */
  readonly sinks: Value;
  /** int64: P, 1, and another 1 where there are sinks. */
  readonly sizes: Value;
  /** Factor on products of queries and keys. */
  readonly scale: number;
}

/**
 * Attention of one new token of every sequence by plain operators, which read earlier keys and values where they are: softmax of
 * products with them and with the new key. ONNX Runtime's operator copies them first.
 * @returns `attended` [B, kvHeads, share, size], and what every place receives, [B, kvHeads, share, P + 1] and a column of the sinks
 */
export function attendPlaces(
  graph: GraphBuilder,
  { query, pastKey, pastValue, key, value, mask, sinks, sizes, scale }: PlacesInputs,
): { readonly attended: Value; readonly probabilities: Value } {
  const scores = (keys: Value) =>
    graph.node("FusedMatMul", [query, keys], {
      domain: "com.microsoft",
      attributes: { transB: 1, alpha: { float: scale } },
    });
  const concat = (values: readonly Value[]) => graph.node("Concat", values, { attributes: { axis: 3 } });
  let all = concat([scores(pastKey), scores(key)]);
  if (mask) all = graph.node("Add", [all, mask]);
  if (sinks) {
    const rows = graph.node("Shape", [all], { attributes: { start: 0, end: 3 } });
    const form = graph.node("Concat", [rows, graph.int64([1])], { attributes: { axis: 0 } });
    all = concat([all, graph.node("Expand", [sinks, form])]);
  }
  const probabilities = graph.node("Softmax", [all], { attributes: { axis: -1 } });
  const shares = (sinks ? ["earlier", "new", "sink"] : ["earlier", "new"]).map((word) => graph.name(word));
  graph.nodes("Split", [probabilities, sizes], shares, { attributes: { axis: 3 } });
  const [earlier, latest] = shares as [Value, Value];
  const ofPast = graph.node("MatMul", [earlier, pastValue]);
  // As products of matrices they would be handed to threads, head by head, whatever their size.
  const own = graph.node("Mul", [latest, value]);
  return { attended: graph.node("Add", [ofPast, own]), probabilities };
}
