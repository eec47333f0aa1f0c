import { CoppiceError, type DecoderLayer } from "@coppice/core";
import { attentionOperator } from "./attention-operator.js";
import { operatorHeads } from "./attention-shape.js";
import { decoderDims } from "./decoder-dims.js";
import type { DecoderInputs } from "./decoder-inputs.js";
import type { Dim, GraphBuilder, Value } from "./graph-builder.js";
import { groupedQueryInputs } from "./grouped-query.js";
import { paddedShape, rotaryDimensions } from "./head-layout.js";
import { cutHeads, type Heads, type RotateHeads, rotateHeads } from "./heads.js";
import { spanValues } from "./held-past.js";
import { latentInputs } from "./latent.js";
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
  const operands =
    shape.kind === "mla"
      ? latentInputs(graph, part, shape, normed, inputs.tokens, rotation as readonly [Value, Value])
      : groupedQueryInputs(graph, part, shape, normed, inputs.tokens, rotate, parts.length === 1);
  const counts = parts.map(({ heads }) => heads.length);
  const split = (value: Value, width: number, axis: number) => splitHeads(graph, value, counts, width, axis);
  const queries = split(operands.query, share * size, 2);
  const keys = split(operands.key, size, 2);
  const values = split(operands.value, size, 2);
  const sinks = split(shape.kind === "gqa" && shape.sinks ? part.vector("sinks", heads) : "", share, 0);
  const presents: PresentValue[] = [];
  const attended = parts.map(({ span }, g) => {
    const own = groups ? `.${span ?? "all"}` : "";
    const [past, present] =
      span === undefined ? [decoderDims.past, decoderDims.total] : spanValues.places(span);
    const dims = (places: Dim) => [decoderDims.batch, counts[g] as number, places, size];
    const attended = graph.name("attended");
    const outputs = [attended, layerValues.presentKey(index, own), layerValues.presentValue(index, own)];
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
    const shapeOfGroup = { ...shape, heads: share * (counts[g] as number) };
    attentionOperator(graph, shapeOfGroup, operandsOfGroup, state, outputs, counts[g]);
    for (const name of outputs.slice(1)) presents.push({ name, shape: dims(present), span });
    return attended;
  });
  const whole = joinHeads(graph, attended, groupedHeads(groups), { count: kvHeads, headDim: share * size });
  const rows = graph.node("Reshape", [whole, graph.int64([-1, heads * size])]);
  const valueDim = attention.kind === "gqa" ? attention.headDim : attention.valueDim;
  return {
    value: cutHeads(graph, rows, heads, size, valueDim),
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

/** The parts [B, S, heads headDim] side by side, heads as the checkpoint has them. @param order the head at each place; undefined: its own */
function joinHeads(
  graph: GraphBuilder,
  parts: readonly Value[],
  order: readonly number[] | undefined,
  { count, headDim }: Heads,
): Value {
  if (parts.length === 1) return parts[0] as Value;
  const joined = graph.node("Concat", parts, { attributes: { axis: 2 } });
  if (!order) return joined;
  const places = Array.from({ length: count }, (_, head) => order.indexOf(head));
  const heads = graph.node("Reshape", [joined, graph.int64([0, 0, count, headDim])]);
  return graph.node("Gather", [heads, graph.int64(places)], { attributes: { axis: 2 } });
}

/** For parts that whoever describes a model says it has not. */
export function notRun(layer: number): CoppiceError {
  return new CoppiceError("COPPICE_INTERNAL", `layer ${layer} has a part that is not described`);
}
