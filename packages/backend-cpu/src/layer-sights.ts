import {
  type AttentionMasker,
  type DecoderLayer,
  limitableLayers,
  type RunRequest,
  throwIfAborted,
} from "@coppice/core";
import {
  attentionShape,
  type GroupedQueryShape,
  headLayout,
  operatorHeads,
  paddedShape,
} from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import { queriesAndKeys } from "./attention.js";
import { askedOf, type ShownUnit, type Sights, sightsOf } from "./masked-sight.js";
import type { RotaryTables } from "./rotary-table.js";
import type { Feeds, Sessions } from "./sessions.js";
import type { UnitInputs } from "./unit-inputs.js";
import type { Unit } from "./units.js";

export interface LayerSightRequest {
  readonly sessions: Sessions;
  readonly rotary: RotaryTables;
  readonly layer: DecoderLayer;
  readonly hiddenSize: number;
  /** Inputs of the layer's attention graph. */
  readonly weights: Feeds;
  readonly request: RunRequest;
  /** All units of some sequences, `hidden` as the layer gets it. */
  readonly passages: readonly {
    readonly unit: Unit;
    readonly inputs: UnitInputs;
    readonly hidden: Tensor;
  }[];
}

/**
 * What a masker lets sequences see in a layer; undefined where a layer keeps what the model says. Queries and keys are computed
 * for the masker alone, and once more for attention itself.
 */
export async function layerSights(
  masker: AttentionMasker,
  { sessions, rotary, layer, hiddenSize, weights, request, passages }: LayerSightRequest,
): Promise<Sights | undefined> {
  const { attention, index } = layer;
  if (attention.kind !== "gqa" || limitableLayers({ layers: [layer] }).length === 0) return undefined;
  const tokens = (sequence: number) => request.sequences[sequence]?.length ?? 0;
  const units: ShownUnit[] = [];
  for (const { unit, inputs, hidden } of passages) {
    const { pieces, length } = unit;
    if (!pieces.some(({ past, begin, sequence }) => askedOf(masker, past - begin, tokens(sequence))))
      continue;
    throwIfAborted(request.signal, `running layer ${index}`);
    const shown = await queriesAndKeys(sessions, { layer, hidden, weights, unit: inputs, length, rotary });
    units.push({ ...shown, pieces, cache: unit.cache?.(index) });
  }
  const { size } = operatorHeads(paddedShape(layer, hiddenSize));
  const shape = attentionShape(layer, hiddenSize) as GroupedQueryShape;
  const layout = { ...headLayout(attention, shape), size };
  return sightsOf({ masker, layer: index, attention, layout, tokens, units });
}
