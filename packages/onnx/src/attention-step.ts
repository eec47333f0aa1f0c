import { attendPlaces } from "./attend-places.js";
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
  const attended = past.groups.map((group, g) => {
    const count = sinks ? 3 : 2;
    const { attended, probabilities } = attendPlaces(graph, {
      query: pick(query, g, 1),
      ...pastInputs(parts, g),
      key: pick(key, g, 1),
      value: pick(value, g, 1),
      sinks: sinks && groupSinks(parts, g, [1, group.kvHeads, share, 1]),
      sizes: graph.input(pastNames.sizes(g), [count], "int64"),
      scale: shape.scale,
    });
    if (received) {
      const name = pastNames.received(g);
      const axes = graph.int64([1, 2]);
      graph.nodes("ReduceSum", [probabilities, axes], [name], { attributes: { keepdims: 0 } });
      graph.output(name, ["B", `${name} positions`]);
    }
    return attended;
  });
  return graph.node("Reshape", [whole(attended, 1), graph.int64([-1, shape.heads * size])]);
}
