import * as v from "valibot";

/** What spans are made of where a plugin's user does not say. */
export const defaultSpans = { sinks: 4, blockSize: 16 } as const;

export const sinksSchema = v.pipe(v.number(), v.safeInteger(), v.minValue(0), v.maxValue(4096));
export const blockSizeSchema = v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(1024));
/** A share of attention that is to be kept. */
export const shareSchema = v.pipe(v.number(), v.gtValue(0), v.maxValue(1));
export const rowsSchema = v.pipe(v.number(), v.safeInteger(), v.minValue(8), v.maxValue(4096));

/** What a change of a head's output is worth: measured per layer, per KV head, or not at all. */
export const sensitivitySchema = v.picklist(["layer", "head", "none"]);
export type Sensitivity = v.InferOutput<typeof sensitivitySchema>;
/** Texts of the shortest length that worth is measured on. */
export const probeTextsSchema = v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(64));

/** Up to as many KV heads each is measured by itself. */
const fewHeads = 64;

export interface ProbeUnits {
  readonly per: Sensitivity;
  /** Heads or layers that are limited one at a time. */
  readonly count: number;
}

/** What is measured alone unless the user says, where a plan limits these numbers of KV heads per layer. */
export function probeUnits(sensitivity: Sensitivity | undefined, layers: readonly number[]): ProbeUnits {
  const heads = layers.reduce((sum, n) => sum + n, 0);
  const per = sensitivity ?? (heads <= fewHeads ? "head" : "layer");
  return { per, count: { head: heads, layer: layers.length, none: 0 }[per] };
}
