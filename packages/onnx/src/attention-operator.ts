import { type AttentionShape, operatorHeads } from "./attention-shape.js";
import type { GraphBuilder, Value } from "./graph-builder.js";

/** Queries, keys and values as the attention operator takes them. */
export interface OperatorInputs {
  /** [B, S, heads size], or with keys and values behind it [B, S, (heads + 2 kvHeads) size]. */
  readonly query: Value;
  /** [B, S, kvHeads size]; `""` when `query` holds them. */
  readonly key: Value;
  readonly value: Value;
}

/** What else the attention operator takes; `""` or absent: nothing. */
export interface OperatorState {
  /** [B, kvHeads, P, size] */
  readonly pastKey?: Value;
  readonly pastValue?: Value;
  /** int32 [B], past and present tokens of each sequence less one. */
  readonly lengths: Value;
  /** int32 [], the most tokens of a sequence. */
  readonly total: Value;
  /** [M, rotaryDimensions / 2] with M >= total; empty: the operator does not rotate. */
  readonly cos: Value;
  readonly sin: Value;
  /** int64 [B, S], where the operator rotates and places in the past are no positions. */
  readonly positions?: Value;
  /** [B or 1, heads or 1, S, total], added to the scores. */
  readonly mask?: Value;
  /** [heads] */
  readonly sinks?: Value;
}

/** Value of `qk_output` that asks the operator for its probabilities. */
const afterSoftmax = 2;

/**
 * ONNX Runtime's GroupQueryAttention: causal, with windows and sinks as attributes and inputs of it.
 * @param outputs names of [B, S, heads size], and where wanted of the extended keys and values and the probabilities;
 * `""` leaves one out
 * @param kvHeads those of the inputs, where they are not all that the shape has
 */
export function attentionOperator(
  graph: GraphBuilder,
  shape: AttentionShape,
  { query, key, value }: OperatorInputs,
  state: OperatorState,
  outputs: readonly Value[],
  kvHeads = operatorHeads(shape).kvHeads,
): void {
  const {
    pastKey = "",
    pastValue = "",
    lengths,
    total,
    cos,
    sin,
    positions = "",
    mask = "",
    sinks = "",
  } = state;
  const all = [query, key, value, pastKey, pastValue, lengths, total, cos, sin, positions, mask, sinks];
  graph.nodes("GroupQueryAttention", all.slice(0, all.findLastIndex((name) => name !== "") + 1), outputs, {
    domain: "com.microsoft",
    attributes: {
      num_heads: shape.heads,
      kv_num_heads: kvHeads,
      scale: { float: shape.scale },
      do_rotary: cos === "" ? 0 : 1,
      rotary_interleaved: 0,
      ...(shape.window !== undefined && { local_window_size: shape.window }),
      ...(outputs.length > 3 && { qk_output: afterSoftmax }),
    },
  });
}
