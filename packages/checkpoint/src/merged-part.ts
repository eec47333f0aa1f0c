import {
  addDelta,
  elementCount,
  type MlpSpec,
  mergeRows,
  mergeUnits,
  roundToStored,
  type TensorRef,
  type WeightReader,
} from "@coppice/core";
import type { LinearSlot, MergedSlot, OwnSlot } from "./output/expert-slots.js";

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
  const delta = slot.kind === "changed" && part === "down" ? slot.delta() : undefined;
  const rest = restFor(slot, part);
  if (rest.kind === "expert" && !delta) return read(rest.expert);
  const own = refOf(slot.expert);
  const merged = new Float32Array(elementCount(own.shape));
  if (rest.kind === "units" && part !== "downBias") {
    const { width } = experts[slot.expert] as MlpSpec;
    const given = [];
    for (const source of rest.units) given.push({ source, values: await read(source.expert) });
    mergeUnits(part, given, width, merged);
  } else if (rest.kind === "merge") await mergeLinear(rest, read, merged);
  else merged.set(await read(rest.expert));
  if (delta) addDelta(merged, delta);
  roundToStored(merged, own);
  return merged;
}

/** What a part is merged from. */
function restFor(slot: OwnSlot, part: ExpertPart): MergedSlot {
  const rest = slot.kind === "changed" ? slot.rest : slot;
  return rest.kind === "units" && part === "downBias" ? rest.rest : rest;
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
