import { CoppiceError, type DecoderLayer } from "@coppice/core";
import { attentionOperator } from "./attention-operator.js";
import { operatorHeads } from "./attention-shape.js";
import { type DecoderInputs, decoderDims } from "./decoder-inputs.js";
import type { Dim, GraphBuilder, Value } from "./graph-builder.js";
import { groupedQueryInputs } from "./grouped-query.js";
import { paddedShape, rotaryDimensions } from "./head-layout.js";
import { cutHeads, type RotateHeads, rotateHeads } from "./heads.js";
import { latentInputs } from "./latent.js";
import type { PartWeights } from "./part-weights.js";

/** Names of the values of a decoder graph that belong to one layer. */
export const layerValues = {
  pastKey: (layer: number) => `past_key_values.${layer}.key`,
  pastValue: (layer: number) => `past_key_values.${layer}.value`,
  presentKey: (layer: number) => `present.${layer}.key`,
  presentValue: (layer: number) => `present.${layer}.value`,
  chosenExperts: (layer: number) => `experts.${layer}`,
} as const;

/** What attention gives before its output map, [B S, width]. */
export function attentionNodes(
  graph: GraphBuilder,
  part: PartWeights,
  layer: DecoderLayer,
  normed: Value,
  inputs: DecoderInputs,
  hidden: number,
): { readonly value: Value; readonly width: number; readonly bias: boolean } {
  const { attention, index } = layer;
  if (attention.kind === "other") throw notRun(index);
  const padded = paddedShape(layer, hidden);
  // Within `decoderPositions` its factor is 1.
  const shape = padded.kind === "gqa" ? { ...padded, temperature: false } : padded;
  const { heads, outputBias } = shape;
  const { kvHeads, size } = operatorHeads(shape);
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
      : groupedQueryInputs(graph, part, shape, normed, inputs.tokens, rotate);
  const past = [decoderDims.batch, kvHeads, decoderDims.past, size];
  const state = {
    pastKey: graph.input(layerValues.pastKey(index), past),
    pastValue: graph.input(layerValues.pastValue(index), past),
    lengths: inputs.lengths,
    total: inputs.total,
    mask: inputs.mask,
    cos,
    sin,
    ...(shape.kind === "gqa" && shape.sinks && { sinks: part.vector("sinks", heads) }),
  };
  const attended = graph.name("attended");
  const outputs = [attended, layerValues.presentKey(index), layerValues.presentValue(index)];
  attentionOperator(graph, shape, operands, state, outputs);
  const rows = graph.node("Reshape", [attended, graph.int64([-1, heads * size])]);
  const valueDim = attention.kind === "gqa" ? attention.headDim : attention.valueDim;
  return {
    value: cutHeads(graph, rows, heads, size, valueDim),
    width: heads * valueDim,
    bias: outputBias,
  };
}

/** Shape of the keys, and of the values, that a layer gives for the next run. */
export function presentShape(layer: DecoderLayer, hidden: number): Dim[] {
  const shape = paddedShape(layer, hidden);
  const { kvHeads, size } = operatorHeads(shape);
  return [decoderDims.batch, kvHeads, decoderDims.total, size];
}

/** For parts that whoever describes a model says it has not. */
export function notRun(layer: number): CoppiceError {
  return new CoppiceError("COPPICE_INTERNAL", `layer ${layer} has a part that is not described`);
}
