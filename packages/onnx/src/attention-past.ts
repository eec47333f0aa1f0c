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
   * the same to it, and windows are the business of masks. `step`: every sequence has one new token, which is multiplied with
   * the past as it lies in memory.
   */
  readonly by: "operator" | "step";
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

/** What the groups of a layer have in common. */
export interface PastParts {
  readonly graph: GraphBuilder;
  readonly shape: AttentionShape;
  readonly past: AttentionPast;
  /** [heads], or `""` */
  readonly sinks: Value;
  /** The KV heads of a group, along the axis that has them. */
  readonly pick: (value: Value, group: number, axis: number) => Value;
  /** All KV heads, along the axis that has those of each group. */
  readonly whole: (parts: readonly Value[], axis: number) => Value;
}

export function pastParts(graph: GraphBuilder, shape: AttentionShape, past: AttentionPast): PastParts {
  const { groups } = past;
  const several = groups.length > 1;
  const heads = groups.map(({ kvHeads }, g) =>
    several ? graph.input(pastNames.heads(g), [kvHeads], "int32") : "",
  );
  return {
    graph,
    shape,
    past,
    sinks: shape.kind === "gqa" && shape.sinks ? graph.input("sinks", [shape.heads]) : "",
    pick: (value, g, axis) =>
      several ? graph.node("Gather", [value, heads[g] as Value], { attributes: { axis } }) : value,
    whole(parts, axis) {
      if (!several) return parts[0] as Value;
      const joined = graph.node("Concat", parts, { attributes: { axis } });
      const order = graph.input("order", [operatorHeads(shape).kvHeads], "int32");
      return graph.node("Gather", [joined, order], { attributes: { axis } });
    },
  };
}

/**
 * Attention over earlier and new tokens by the operator, group by group.
 * @param queries which tokens are no padding, where the groups' `received` are wanted; or `""`
 * @returns [B, S, heads size]
 */
export function attendPast(parts: PastParts, operands: OperatorInputs, queries: Value): Value {
  const { graph, shape, past, sinks, pick, whole } = parts;
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
      ...pastInputs(parts, g),
      lengths: graph.input(pastNames.lengths(g), ["B"], "int32"),
      total: graph.input(pastNames.total(g), [], "int32"),
      cos: "",
      sin: "",
      sinks: sinks && groupSinks(parts, g, [-1]),
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

export function pastInputs({ graph, shape, past: { groups } }: PastParts, g: number) {
  const { kvHeads, masked } = groups[g] as PastGroup;
  const { size } = operatorHeads(shape);
  const past = (name: string) => graph.input(name, ["B", kvHeads, `P${g}`, size]);
  return {
    pastKey: past(pastNames.key(g)),
    pastValue: past(pastNames.value(g)),
    mask: masked
      ? graph.input(pastNames.mask(g), ["masked sequences", `masked heads ${g}`, "S", `T${g}`])
      : "",
  };
}

/** Those of the group's query heads, as `dims`. */
export function groupSinks(
  { graph, shape, sinks, pick }: PastParts,
  g: number,
  dims: readonly number[],
): Value {
  const { kvHeads } = operatorHeads(shape);
  const grouped = graph.node("Reshape", [sinks, graph.int64([kvHeads, shape.heads / kvHeads])]);
  return graph.node("Reshape", [pick(grouped, g, 0), graph.int64(dims)]);
}
