import { attentionOperator, type OperatorInputs } from "./attention-operator.js";
import { type AttentionShape, operatorHeads } from "./attention-shape.js";
import type { GraphBuilder, Value } from "./graph-builder.js";

/** KV heads of a layer, with their query heads, whose earlier keys and values lie in arrays of their own. */
export interface PastGroup {
  readonly kvHeads: number;
  /** Takes a mask. */
  readonly masked: boolean;
}

/**
 * Earlier keys and values. They are inputs only: the graph gives those of the new tokens, which whoever keeps them adds.
 * ONNX Runtime in Node copies all that a run puts out, which for a long past is more work than attention itself.
 */
export interface AttentionPast {
  /** One group has all KV heads in their order; of several the graph takes which heads they have. */
  readonly groups: readonly PastGroup[];
  /**
   * `operator`: ONNX Runtime's GroupQueryAttention, which makes a copy of past and new keys inside; any order of the past is
   * the same to it, and windows are the business of masks. `products`: products with the past as it lies in memory; the
   * faster for a few tokens, and several times slower for many, since all scores are written out.
   */
  readonly by: "operator" | "products";
}

/** The names of inputs and outputs of group `g`. */
export const pastNames = {
  key: (g: number) => `pastKey${g}`,
  value: (g: number) => `pastValue${g}`,
  mask: (g: number) => `mask${g}`,
  heads: (g: number) => `heads${g}`,
  lengths: (g: number) => `lengths${g}`,
  total: (g: number) => `total${g}`,
  sizes: (g: number) => `sizes${g}`,
  received: (g: number) => `received${g}`,
} as const;

/** Takes `[B, .., kvHeads, width]` apart: the KV heads of a group, along the axis that has them. */
type Pick = (value: Value, group: number, axis: number) => Value;

/**
 * Attention over earlier and new tokens, group by group.
 * @param received whether the groups' `received` are outputs; takes `queries`
 * @returns [B, S, heads size]
 */
export function attendPast(
  graph: GraphBuilder,
  shape: AttentionShape,
  past: AttentionPast,
  operands: OperatorInputs,
  received: boolean,
): Value {
  const { groups } = past;
  const sinks = shape.kind === "gqa" && shape.sinks ? graph.input("sinks", [shape.heads]) : "";
  const queries = received ? graph.input("queries", ["B", 1, "S", 1], "bool") : "";
  const several = groups.length > 1;
  const heads = groups.map(({ kvHeads }, g) =>
    several ? graph.input(pastNames.heads(g), [kvHeads], "int32") : "",
  );
  const pick: Pick = (value, g, axis) =>
    several ? graph.node("Gather", [value, heads[g] as Value], { attributes: { axis } }) : value;
  const whole = (parts: readonly Value[], axis: number) => {
    if (!several) return parts[0] as Value;
    const joined = graph.node("Concat", parts, { attributes: { axis } });
    const order = graph.input("order", [operatorHeads(shape).kvHeads], "int32");
    return graph.node("Gather", [joined, order], { attributes: { axis } });
  };
  const parts = { graph, shape, past, operands, sinks, queries, pick };
  return past.by === "operator" ? byOperator(parts, whole) : byProducts(parts, whole);
}

interface Parts {
  readonly graph: GraphBuilder;
  readonly shape: AttentionShape;
  readonly past: AttentionPast;
  readonly operands: OperatorInputs;
  readonly sinks: Value;
  readonly queries: Value;
  readonly pick: Pick;
}

type Whole = (parts: readonly Value[], axis: number) => Value;

function byOperator({ graph, shape, past, operands, sinks, queries, pick }: Parts, whole: Whole): Value {
  const { kvHeads, size } = operatorHeads(shape);
  const share = shape.heads / kvHeads;
  const heads = (value: Value, width: number) =>
    graph.node("Reshape", [value, graph.int64([0, 0, kvHeads, width])]);
  const [query, key, value] = [
    heads(operands.query, share * size),
    heads(operands.key, size),
    heads(operands.value, size),
  ];
  const { window: _, ...boundless } = shape;
  const attended = past.groups.map((group, g) => {
    const flat = (value: Value, width: number) =>
      graph.node("Reshape", [pick(value, g, 2), graph.int64([0, 0, group.kvHeads * width])]);
    const name = graph.name("attended");
    const probabilities = graph.name("probabilities");
    const outputs = [name, graph.name("key"), graph.name("value")];
    const state = {
      ...pastInputs(graph, group, g, size),
      lengths: graph.input(pastNames.lengths(g), ["B"], "int32"),
      total: graph.input(pastNames.total(g), [], "int32"),
      cos: "",
      sin: "",
      sinks: sinks && groupSinks(graph, sinks, kvHeads, share, g, pick),
    };
    attentionOperator(
      graph,
      { ...boundless, heads: group.kvHeads * share },
      { query: flat(query, share * size), key: flat(key, size), value: flat(value, size) },
      state,
      queries ? [...outputs, probabilities] : outputs,
      group.kvHeads,
    );
    if (queries) sumReceived(graph, probabilities, queries, pastNames.received(g));
    return graph.node("Reshape", [name, graph.int64([0, 0, group.kvHeads, share * size])]);
  });
  return graph.node("Reshape", [whole(attended, 2), graph.int64([0, 0, shape.heads * size])]);
}

function byProducts({ graph, shape, past, operands, sinks, queries, pick }: Parts, whole: Whole): Value {
  const { kvHeads, size } = operatorHeads(shape);
  const { heads, scale } = shape;
  const share = heads / kvHeads;
  const query = headsFirst(graph, operands.query, heads, size);
  const grouped = graph.node("Reshape", [query, graph.int64([0, kvHeads, -1, size])]);
  const key = headsFirst(graph, operands.key, kvHeads, size);
  const value = headsFirst(graph, operands.value, kvHeads, size);
  const scores = (query: Value, key: Value) =>
    graph.node("FusedMatMul", [query, key], {
      domain: "com.microsoft",
      attributes: { transB: 1, alpha: { float: scale } },
    });
  const attended = past.groups.map((group, g) => {
    const { pastKey, pastValue, mask } = pastInputs(graph, group, g, size);
    const query = pick(grouped, g, 1);
    const both = graph.node("Concat", [scores(query, pastKey), scores(query, pick(key, g, 1))], {
      attributes: { axis: 3 },
    });
    // [B, KV heads, queries of all their heads, T] is [B, heads, S, T].
    const perHead = (count: number, rows: Value) => {
      const columns = graph.node("Shape", [rows], { attributes: { start: 3 } });
      const form = graph.node("Concat", [graph.int64([0, count, -1]), columns], { attributes: { axis: 0 } });
      return graph.node("Reshape", [rows, form]);
    };
    let masked = perHead(group.kvHeads * share, both);
    if (mask) masked = graph.node("Add", [masked, mask]);
    const sizes = graph.input(pastNames.sizes(g), [sinks ? 3 : 2], "int64");
    if (sinks) {
      const own = graph.node("Reshape", [
        groupSinks(graph, sinks, kvHeads, share, g, pick),
        graph.int64([1, -1, 1, 1]),
      ]);
      const rows = graph.node("Shape", [masked], { attributes: { start: 0, end: 3 } });
      const form = graph.node("Concat", [rows, graph.int64([1])], { attributes: { axis: 0 } });
      const column = graph.node("Expand", [own, form]);
      masked = graph.node("Concat", [masked, column], { attributes: { axis: 3 } });
    }
    const probabilities = graph.node("Softmax", [masked], { attributes: { axis: -1 } });
    if (queries) sumReceived(graph, probabilities, queries, pastNames.received(g));
    const shares = (sinks ? ["earlier", "new", "sink"] : ["earlier", "new"]).map((word) => graph.name(word));
    const back = perHead(group.kvHeads, probabilities);
    graph.nodes("Split", [back, sizes], shares, { attributes: { axis: 3 } });
    const [earlier, latest] = shares as [Value, Value];
    return graph.node("Add", [
      graph.node("MatMul", [earlier, pastValue]),
      graph.node("MatMul", [latest, pick(value, g, 1)]),
    ]);
  });
  const back = graph.node("Reshape", [whole(attended, 1), graph.int64([0, heads, -1, size])]);
  const rows = graph.node("Transpose", [back], { attributes: { perm: [0, 2, 1, 3] } });
  return graph.node("Reshape", [rows, graph.int64([0, 0, heads * size])]);
}

/** [B, S, count size] -> [B, count, S, size] */
export function headsFirst(
  graph: GraphBuilder,
  value: Value,
  count: number,
  size: number,
  name?: string,
): Value {
  const heads = graph.node("Reshape", [value, graph.int64([0, 0, count, size])]);
  return graph.node("Transpose", [heads], { attributes: { perm: [0, 2, 1, 3] } }, name);
}

/** What every position receives: probabilities [B, heads, S, T] summed over heads and real queries, [B, T]. */
export function sumReceived(graph: GraphBuilder, probabilities: Value, queries: Value, name: string): void {
  // Chosen and not multiplied: the operator leaves padding as it finds it, with values that may be no numbers.
  const real = graph.node("Where", [queries, probabilities, graph.float32(0)]);
  graph.nodes("ReduceSum", [real, graph.int64([1, 2])], [name], { attributes: { keepdims: 0 } });
  graph.output(name, ["B", `${name} positions`]);
}

function pastInputs(graph: GraphBuilder, { kvHeads, masked }: PastGroup, g: number, size: number) {
  const past = (name: string) => graph.input(name, ["B", kvHeads, `P${g}`, size]);
  return {
    pastKey: past(pastNames.key(g)),
    pastValue: past(pastNames.value(g)),
    mask: masked
      ? graph.input(pastNames.mask(g), ["masked sequences", `masked heads ${g}`, "S", `T${g}`])
      : "",
  };
}

/** [query heads of the group] */
function groupSinks(
  graph: GraphBuilder,
  sinks: Value,
  kvHeads: number,
  share: number,
  g: number,
  pick: Pick,
): Value {
  const grouped = graph.node("Reshape", [sinks, graph.int64([kvHeads, share])]);
  return graph.node("Reshape", [pick(grouped, g, 0), graph.int64([-1])]);
}
