import type { OperatorInputs } from "./attention-operator.js";
import { groupSinks, type PastParts, pastInputs, pastNames } from "./attention-past.js";
import { operatorHeads } from "./attention-shape.js";
import type { Value } from "./graph-builder.js";

/** Keys and values of one new token of every sequence, [B, kvHeads, 1, size]. */
export interface StepOutputs {
  readonly key: Value;
  readonly value: Value;
}

/**
 * Attention of one new token of every sequence over its past and itself, group by group: softmax of products with the past as
 * it lies in memory and with the new key.
 * @param operands [B, heads size] and [B, kvHeads size]
 * @param received whether the groups' `received` are outputs
 * @returns [B, heads size]
 */
export function attendStep(
  parts: PastParts,
  operands: OperatorInputs,
  received: boolean,
  { key, value }: StepOutputs,
): Value {
  const { graph, shape, past, sinks, pick, whole } = parts;
  const { kvHeads, size } = operatorHeads(shape);
  const share = shape.heads / kvHeads;
  const query = graph.node("Reshape", [operands.query, graph.int64([-1, kvHeads, share, size])]);
  const scores = (query: Value, key: Value) =>
    graph.node("FusedMatMul", [query, key], {
      domain: "com.microsoft",
      attributes: { transB: 1, alpha: { float: shape.scale } },
    });
  const concat = (values: readonly Value[]) => graph.node("Concat", values, { attributes: { axis: 3 } });
  const attended = past.groups.map((group, g) => {
    const { pastKey, pastValue, mask } = pastInputs(parts, g);
    const own = pick(query, g, 1);
    let all = concat([scores(own, pastKey), scores(own, pick(key, g, 1))]);
    if (mask) all = graph.node("Add", [all, mask]);
    if (sinks) {
      const rows = graph.node("Shape", [all], { attributes: { start: 0, end: 3 } });
      const form = graph.node("Concat", [rows, graph.int64([1])], { attributes: { axis: 0 } });
      const column = groupSinks(parts, g, [1, group.kvHeads, share, 1]);
      all = concat([all, graph.node("Expand", [column, form])]);
    }
    const probabilities = graph.node("Softmax", [all], { attributes: { axis: -1 } });
    if (received) {
      const name = pastNames.received(g);
      const axes = graph.int64([1, 2]);
      graph.nodes("ReduceSum", [probabilities, axes], [name], { attributes: { keepdims: 0 } });
      graph.output(name, ["B", `${name} positions`]);
    }
    const shares = (sinks ? ["earlier", "new", "sink"] : ["earlier", "new"]).map((word) => graph.name(word));
    const sizes = graph.input(pastNames.sizes(g), [shares.length], "int64");
    graph.nodes("Split", [probabilities, sizes], shares, { attributes: { axis: 3 } });
    const [earlier, latest] = shares as [Value, Value];
    return graph.node("Add", [
      graph.node("MatMul", [earlier, pastValue]),
      graph.node("MatMul", [latest, pick(value, g, 1)]),
    ]);
  });
  return graph.node("Reshape", [whole(attended, 1), graph.int64([-1, shape.heads * size])]);
}
