import { attendPlaces } from "./attend-places.js";
import type { OperatorInputs, OperatorState } from "./attention-operator.js";
import type { AttentionShape } from "./attention-shape.js";
import { hiddenScore } from "./decoder-dims.js";
import type { BranchOutput, GraphBuilder, Value } from "./graph-builder.js";

/** What a run of one token takes whose attention reads the past where it lies. */
export interface OneToken {
  /** bool [], whether a run is one, as its caller says. */
  readonly condition: Value;
  /** int64 [1, 1] */
  readonly position: Value;
  /**
   * Of caches that hold as much as each other.
   * @param pastKey one of them, [1, heads, P, size]
   * @param window keys that the token sees, itself included; undefined: all
   * @param parts of the scores: 2, or with sinks 3
   */
  places(pastKey: Value, span: number | undefined, window: number | undefined, parts: 2 | 3): OneTokenPlaces;
}

export interface OneTokenPlaces {
  /** [1, 1, 1, P + 1], what hides places that hold nothing that the token sees; it sees itself. */
  readonly mask: Value;
  /** int64: P, 1, and another 1 for sinks. */
  readonly sizes: Value;
}

/** What is known of the tokens and caches of a run. */
export interface OneTokenSources {
  /** int64 [], below 0 in such a run. */
  readonly keep: Value;
  /** int64 [1], places that caches of a span hold before the run; of heads that see everything, the tokens. */
  held(span: number | undefined): Value;
  /** [1, 1, 1, at least those], what is added to their scores. */
  scores(span: number | undefined): Value;
}

export function oneToken(graph: GraphBuilder, { keep, held, scores }: OneTokenSources): OneToken {
  const [zero, one] = [graph.int64([0], []), graph.int64([1], [])];
  const masks = new Map<string, OneTokenPlaces>();
  const counts = new Map<number | undefined, Value>();
  const concat = (values: readonly Value[]) => graph.node("Concat", values, { attributes: { axis: 0 } });
  const pad = (value: Value, behind: Value, filling: number) => {
    const pads = concat([graph.int64([0, 0, 0, 0, 0, 0, 0]), behind]);
    return graph.node("Pad", [value, pads, graph.float32(filling)]);
  };
  const made = (pastKey: Value, span: number | undefined, window: number | undefined, parts: 2 | 3) => {
    const count = counts.get(span) ?? graph.node("Shape", [pastKey], { attributes: { start: 2, end: 3 } });
    counts.set(span, count);
    const filled = held(span);
    const ofHeld = graph.node("Slice", [scores(span), graph.int64([0]), filled, graph.int64([3])]);
    let mask = pad(ofHeld, graph.node("Sub", [count, filled]), hiddenScore);
    if (window !== undefined) {
      // Of n earlier tokens it sees the last window - 1.
      const first = graph.node("Sub", [filled, graph.int64([window - 1])]);
      const range = graph.node("Range", [zero, graph.node("Squeeze", [count]), one]);
      mask = graph.node("Where", [graph.node("Less", [range, first]), graph.float32(hiddenScore), mask]);
    }
    const ones = graph.int64(parts === 3 ? [1, 1] : [1]);
    return { mask: pad(mask, graph.int64([1]), 0), sizes: concat([count, ones]) };
  };
  return {
    condition: graph.node("Less", [keep, zero]),
    position: graph.node("Reshape", [held(undefined), graph.int64([1, 1])]),
    places(pastKey, span, window, parts) {
      const key = `${span} ${window} ${parts}`;
      const places = masks.get(key) ?? made(pastKey, span, window, parts);
      masks.set(key, places);
      return places;
    },
  };
}

/**
 * Attention of one token of one sequence.
 * @param shape of the heads of one cache, with `kvHeads` of keys and values
 * @param operands rows, [1, width]
 * @returns [1, heads size], and keys and values of the token, [1, kvHeads, 1, size]
 */
export function attendOneToken(
  graph: GraphBuilder,
  shape: AttentionShape,
  operands: OperatorInputs,
  state: Pick<OperatorState, "pastKey" | "pastValue" | "cos" | "sin" | "sinks">,
  { position }: OneToken,
  { mask, sizes }: OneTokenPlaces,
  kvHeads: number,
  size: number,
): readonly BranchOutput[] {
  const { heads } = shape;
  const { cos, sin, sinks = "" } = state;
  const share = heads / kvHeads;
  const split = (value: Value, counts: readonly number[]) => {
    const names = counts.map(() => graph.name("part"));
    graph.nodes("Split", [value, graph.int64(counts)], names, { attributes: { axis: 1 } });
    return names as [Value, Value, Value];
  };
  const byHead = (value: Value, count: number) =>
    graph.node("Reshape", [value, graph.int64([1, count, 1, size])]);
  const turn = (value: Value, count: number) => {
    if (cos === "") return value;
    const attributes = { num_heads: count, rotary_embedding_dim: shape.rotaryDimensions, interleaved: 0 };
    return graph.node("RotaryEmbedding", [value, position, cos, sin], {
      domain: "com.microsoft",
      attributes,
    });
  };
  const [turned, key, value] = parts();
  const [scaled, scale] = share === 1 ? [times(turned), 1] : [turned, shape.scale];
  const { attended } = attendPlaces(graph, {
    query: graph.node("Reshape", [scaled, graph.int64([1, kvHeads, share, size])]),
    pastKey: state.pastKey as Value,
    pastValue: state.pastValue as Value,
    key,
    value,
    mask,
    sinks: sinks && graph.node("Reshape", [sinks, graph.int64([1, kvHeads, share, 1])]),
    sizes,
    scale,
  });
  const places = [1, kvHeads, 1, size];
  return [
    { value: graph.node("Reshape", [attended, graph.int64([1, heads * size])]), shape: [1, heads * size] },
    { value: key, shape: places },
    { value, shape: places },
  ];

  /** By head, [1, count, 1, size], positions turned into queries and keys. */
  function parts(): readonly [Value, Value, Value] {
    if (operands.key !== "") {
      const { query, key, value } = operands;
      return [turn(byHead(query, heads), heads), turn(byHead(key, kvHeads), kvHeads), byHead(value, kvHeads)];
    }
    const all = byHead(operands.query, heads + 2 * kvHeads);
    if (cos === "") return split(all, [heads, kvHeads, kvHeads]);
    // Queries and keys in one go.
    const [both, value] = split(all, [heads + kvHeads, kvHeads]);
    const [query, key] = split(turn(both, heads + kvHeads), [heads, kvHeads]);
    return [query, key, value];
  }

  /**
   * Products of one row are twice as fast without a factor, which ONNX Runtime takes out of a multiplication only where that stands
   * directly before the product.
   */
  function times(query: Value): Value {
    return graph.node("Mul", [query, graph.float32(shape.scale)]);
  }
}
