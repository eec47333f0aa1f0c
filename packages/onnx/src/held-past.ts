import { CachePlaces, type HeadSpan } from "@coppice/core";
import { decoderDims } from "./decoder-dims.js";
import type { GraphBuilder, Value } from "./graph-builder.js";
import { dataTypes } from "./model-file.js";

/** What the attention operator takes of tokens whose cache holds no more than a span. */
export interface HeldPast {
  /** int32 [B], held and present tokens of each sequence less one. */
  readonly lengths: Value;
  /** int32 [], the most of them. */
  readonly total: Value;
  /** [B or 1, 1, S, total], what hides places that are out of the window of a token. */
  readonly mask: Value;
  /** int64 [1], the end of the places that the longest sequence has filled then. */
  readonly end: Value;
  /** int64 [B, S], because places say nothing of positions. */
  readonly positions: Value;
}

/** Names of values of a decoder graph that belong to one span. */
export const spanValues = {
  bias: (span: number) => `attention_bias.${span}`,
  /** Places of the past, and of the present. */
  places: (span: number) => [`past_places_${span}`, `places_${span}`] as const,
} as const;

/** Of caches whose first places hold the sinks, and the others the last tokens of the window in any order. */
export function heldPasts(
  graph: GraphBuilder,
  spans: readonly HeadSpan[],
  /** int64 [B], past and present tokens of each sequence. */
  seen: Value,
  /** int64 [1], S */
  steps: Value,
): { held(span: number): HeldPast; positions(): Value } {
  const { batch, sequence } = decoderDims;
  const known = new Map<number, HeldPast>();
  const int32 = (value: Value) => graph.node("Cast", [value], { attributes: { to: dataTypes.int32 } });
  let all: Value | undefined;
  /** A prompt that is padded behind its tokens has fewer than S: nothing is past then. */
  const positions = () => {
    if (all !== undefined) return all;
    const past = graph.node("Max", [graph.node("Sub", [seen, steps]), graph.int64([0])]);
    const count = graph.node("Squeeze", [steps]);
    const range = graph.node("Range", [graph.int64([0], []), count, graph.int64([1], [])]);
    all = graph.node("Add", [graph.node("Unsqueeze", [past, graph.int64([1])]), range]);
    return all;
  };
  const made = (index: number, span: HeadSpan): HeldPast => {
    const most = graph.node("Add", [steps, graph.int64([new CachePlaces(span).room])]);
    const count = graph.node("Min", [seen, most]);
    const lengths = int32(graph.node("Sub", [count, graph.int64([1])]));
    const end = graph.node("ReduceMax", [count]);
    return {
      lengths,
      total: int32(graph.node("Squeeze", [end])),
      end,
      mask: graph.input(spanValues.bias(index), [`${batch}_or_1`, 1, sequence, `seen_${index}`]),
      positions: positions(),
    };
  };
  return {
    positions,
    held(index) {
      const past = known.get(index) ?? made(index, spans[index] as HeadSpan);
      known.set(index, past);
      return past;
    },
  };
}
