import { countBfloat16, unpackBfloat16 } from "./packed-floats.js";
import type { LayerPlan } from "./plan.js";

/**
 * What a valid plan adds to the down projection of a slot, [hidden, width]; undefined where that is nothing. Only the
 * slot's own part is decoded, so that layers with many experts are built one slot at a time.
 */
export function downDelta(
  { experts, down }: Pick<LayerPlan, "experts" | "down">,
  slot: number,
): Float32Array | undefined {
  if (down === undefined) return undefined;
  const size = (countBfloat16(down) as number) / experts.length;
  const delta = unpackBfloat16(down, { from: slot * size, to: (slot + 1) * size, what: "deltas of down" });
  return delta.some((value) => value !== 0) ? delta : undefined;
}

/**
 * Adds deltas to the down projection of a slot, which whoever stores or runs it then rounds (`roundToStored`). Each sum is
 * rounded to float32; every element is computed by itself, so a matrix may be changed in pieces.
 * @param delta as many as values
 */
export function addDelta(values: Float32Array, delta: Float32Array): void {
  if (delta.length !== values.length) {
    throw new RangeError(`${delta.length} deltas for ${values.length} values`);
  }
  for (let i = 0; i < values.length; i++) values[i] = (values[i] as number) + (delta[i] as number);
}
