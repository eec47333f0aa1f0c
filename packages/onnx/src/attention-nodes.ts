import { CoppiceError, type DecoderLayer } from "@coppice/core";
import { attentionOperator, type OperatorInputs } from "./attention-operator.js";
import { operatorHeads } from "./attention-shape.js";
import { decoderDims } from "./decoder-dims.js";
import type { DecoderInputs } from "./decoder-inputs.js";
import type { Dim, GraphBuilder, Value } from "./graph-builder.js";
import { groupedQueryInputs } from "./grouped-query.js";
import { paddedShape, rotaryDimensions } from "./head-layout.js";
import { cutHeads, type Heads, type RotateHeads, rotateHeads } from "./heads.js";
import { spanValues } from "./held-past.js";
import { latentInputs } from "./latent.js";
import { attendOneToken } from "./one-token.js";
import type { PartWeights } from "./part-weights.js";
import { groupedHeads, type SpanGroup } from "./span-groups.js";

/** Names of the values of a decoder graph that belong to one layer, or to some of its heads. */
export const layerValues = {
  pastKey: (layer: number, part = "") => `past_key_values.${layer}${part}.key`,
  pastValue: (layer: number, part = "") => `past_key_values.${layer}${part}.value`,
  presentKey: (layer: number, part = "") => `present.${layer}${part}.key`,
  presentValue: (layer: number, part = "") => `present.${layer}${part}.value`,
  chosenExperts: (layer: number) => `experts.${layer}`,
} as const;

/** Keys or values that a layer gives for the next run. */
export interface PresentValue {
  readonly name: Value;
  readonly shape: readonly Dim[];
  /** Which span its heads have; undefined: they see everything. */
  readonly span: number | undefined;
}

export interface AttendedRows {
  /** [B S, width] */
  readonly value: Value;
  readonly width: number;
  readonly bias: boolean;
  readonly presents: readonly PresentValue[];
}

/** What attention gives before its output map. @param groups KV heads by how far they see; absent: as the model is */
export function attentionNodes(
  graph: GraphBuilder,
  part: PartWeights,
  layer: DecoderLayer,
  normed: Value,
  inputs: DecoderInputs,
  hidden: number,
  groups?: readonly SpanGroup[],
): AttendedRows {
  const { attention, index } = layer;
  if (attention.kind === "other") throw notRun(index);
  const padded = paddedShape(layer, hidden);
  // Within `decoderPositions` its factor is 1.
  const shape = padded.kind === "gqa" ? { ...padded, temperature: false } : padded;
  const { heads, outputBias } = shape;
  const { kvHeads, size } = operatorHeads(shape);
  const share = heads / kvHeads;
  const parts = groups ?? [{ heads: Array.from({ length: kvHeads }, (_, head) => head), span: undefined }];
  const turning = rotaryDimensions(attention, shape);
  const { rotary } = attention;
  const inOperator = shape.kind === "gqa" && shape.rotation === "operator";
  const [cos, sin] = rotary && inOperator ? inputs.tables(rotary, turning) : ["", ""];
  const rotation = rotary && !inOperator ? inputs.rowTables(rotary, turning) : undefined;
  const rotate: RotateHeads | undefined =
    rotation && ((value, heads, dimensions) => rotateHeads(graph, value, heads, dimensions, rotation));
  const rows = (value: Value) => value;
  const operands =
    shape.kind === "mla"
      ? latentInputs(graph, part, shape, normed, rows, rotation as readonly [Value, Value])
      : groupedQueryInputs(graph, part, shape, normed, rows, rotate, parts.length === 1);
  const counts = parts.map(({ heads }) => heads.length);
  const split = (value: Value, width: number, axis: number) => splitHeads(graph, value, counts, width, axis);
  const queries = split(operands.query, share * size, 1);
  const keys = split(operands.key, size, 1);
  const values = split(operands.value, size, 1);
  const sinks = split(shape.kind === "gqa" && shape.sinks ? part.vector("sinks", heads) : "", share, 0);
  const presents: PresentValue[] = [];
  const attended = parts.map(({ span }, g) => {
    const own = groups ? `.${span ?? "all"}` : "";
    const [past, present] =
      span === undefined ? [decoderDims.past, decoderDims.total] : spanValues.places(span);
    const count = counts[g] as number;
    const dims = (places: Dim) => [decoderDims.batch, count, places, size];
    const held = span === undefined ? inputs : inputs.held(span);
    const state = {
      pastKey: graph.input(layerValues.pastKey(index, own), dims(past)),
      pastValue: graph.input(layerValues.pastValue(index, own), dims(past)),
      lengths: held.lengths,
      total: held.total,
      mask: held.mask,
      cos,
      sin,
      ...("positions" in held && cos !== "" && { positions: held.positions }),
      ...(sinks[g] && { sinks: sinks[g] }),
    };
    const operandsOfGroup = {
      query: queries[g] as Value,
      key: keys[g] as Value,
      value: values[g] as Value,
    };
    const shapeOfGroup = { ...shape, heads: share * count };
    const width = shapeOfGroup.heads * size;
    const names = [layerValues.presentKey(index, own), layerValues.presentValue(index, own)] as const;
    for (const name of names) presents.push({ name, shape: dims(present), span });
    const { oneToken } = inputs;
    if (!oneToken) return byOperator(names);
    const places = oneToken.places(state.pastKey, span, shape.window, sinks[g] ? 3 : 2);
    for (const [, width] of widths()) inputs.tokenShape(width);
    const attended = graph.name("attended");
    graph.choose(
      oneToken.condition,
      [attended, ...names],
      () => attendOneToken(graph, shapeOfGroup, operandsOfGroup, state, oneToken, places, count, size),
      () => {
        const own = [graph.name("key"), graph.name("value")] as const;
        const value = byOperator(own);
        return [{ value, shape: ["rows", width] }, ...own.map((value) => ({ value, shape: dims(present) }))];
      },
    );
    return attended;

    /** Names and widths of the operands that there are. */
    function widths(): [keyof OperatorInputs, number][] {
      if (operandsOfGroup.key === "") return [["query", width + 2 * count * size]];
      return [
        ["query", width],
        ["key", count * size],
        ["value", count * size],
      ];
    }

    /** [B S, width] */
    function byOperator(present: readonly [Value, Value]): Value {
      const wide = { ...operandsOfGroup };
      for (const [name, width] of widths()) wide[name] = inputs.tokens(wide[name], width);
      const attended = graph.name("attended");
      attentionOperator(graph, shapeOfGroup, wide, state, [attended, ...present], count);
      return graph.node("Reshape", [attended, graph.int64([-1, width])]);
    }
  });
  const whole = joinHeads(graph, attended, groupedHeads(groups), { count: kvHeads, headDim: share * size });
  const valueDim = attention.kind === "gqa" ? attention.headDim : attention.valueDim;
  return {
    value: cutHeads(graph, whole, heads, size, valueDim),
    width: heads * valueDim,
    bias: outputBias,
    presents,
  };
}

/** Heads of `width` values each along an axis, in parts of so many; `""` stays nothing in every part. */
function splitHeads(
  graph: GraphBuilder,
  value: Value,
  counts: readonly number[],
  width: number,
  axis: number,
): Value[] {
  if (value === "" || counts.length === 1) return counts.map(() => value);
  const names = counts.map(() => graph.name("heads"));
  const sizes = graph.int64(counts.map((count) => count * width));
  graph.nodes("Split", [value, sizes], names, { attributes: { axis } });
  return names;
}

/** The parts [N, heads headDim] side by side, heads as the checkpoint has them. @param order the head at each place; undefined: its own */
function joinHeads(
  graph: GraphBuilder,
  parts: readonly Value[],
  order: readonly number[] | undefined,
  { count, headDim }: Heads,
): Value {
  if (parts.length === 1) return parts[0] as Value;
  const joined = graph.node("Concat", parts, { attributes: { axis: 1 } });
  if (!order) return joined;
  const places = Array.from({ length: count }, (_, head) => order.indexOf(head));
  const heads = graph.node("Reshape", [joined, graph.int64([-1, count, headDim])]);
  const sorted = graph.node("Gather", [heads, graph.int64(places)], { attributes: { axis: 1 } });
  return graph.node("Reshape", [sorted, graph.int64([-1, count * headDim])]);
}

/** For parts that whoever describes a model says it has not. */
export function notRun(layer: number): CoppiceError {
  return new CoppiceError("COPPICE_INTERNAL", `layer ${layer} has a part that is not described`);
}
