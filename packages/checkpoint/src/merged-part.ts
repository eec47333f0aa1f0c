import {
  elementCount,
  type MlpSpec,
  mergeRows,
  mergeUnits,
  roundToStored,
  type TensorRef,
  type WeightReader,
} from "@coppice/core";
import type { LinearSlot, OwnSlot } from "./output/expert-slots.js";

/** The tensors of an expert by their names in its description. */
export type ExpertPart = "gate" | "up" | "down" | "gateBias" | "upBias" | "downBias";
export const expertParts: readonly ExpertPart[] = ["gate", "up", "down", "gateBias", "upBias", "downBias"];

/**
 * One part of the expert that a slot holds, computed from its description as backends do and rounded as it is stored.
 * @param experts the layer's, all of which have this part
 */
export async function mergedPart(
  experts: readonly MlpSpec[],
  slot: OwnSlot,
  part: ExpertPart,
  weights: WeightReader,
  signal: AbortSignal | undefined,
): Promise<Float32Array> {
  const refOf = (expert: number) => (experts[expert] as MlpSpec)[part] as TensorRef;
  const read = (expert: number) => weights.read(refOf(expert), signal ? { signal } : {});
  if (slot.kind === "expert") return read(slot.expert);
  const own = refOf(slot.expert);
  const merged = new Float32Array(elementCount(own.shape));
  if (slot.kind === "units") {
    if (part === "downBias") return mergedPart(experts, slot.rest, part, weights, signal);
    const { width } = experts[slot.expert] as MlpSpec;
    const given = [];
    for (const source of slot.units) given.push({ source, values: await read(source.expert) });
    mergeUnits(part, given, width, merged);
  } else await mergeLinear(slot, read, merged);
  roundToStored(merged, own);
  return merged;
}

async function mergeLinear(
  { experts, coefficients }: Extract<LinearSlot, { kind: "merge" }>,
  read: (expert: number) => Promise<Float32Array>,
  merged: Float32Array,
): Promise<void> {
  const sources: Float32Array[] = [];
  for (const expert of experts) sources.push(await read(expert));
  mergeRows(sources, coefficients, merged);
}
