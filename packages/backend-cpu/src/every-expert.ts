import { gatesOfAll, type LayerTap, type MoeSpec, type Tap } from "@coppice/core";
import { expertGraph, type MlpShape } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import type { PlannedExperts } from "./planned-layers.js";
import type { Runtime, Sessions } from "./sessions.js";

/** The fields of a layer that show what all slots compute. */
export type EveryShown = Pick<LayerTap, "everyRows" | "everyOutput" | "everyUnit">;

export interface EveryRequest {
  readonly tap: Tap;
  readonly spec: MoeSpec;
  readonly experts: PlannedExperts;
  readonly shape: MlpShape;
  /** [N, hidden] */
  readonly normed: Tensor;
  /** [N, router rows] */
  readonly logits: Tensor;
  /** [N], place of each row in the packed order of the request. */
  readonly places: Int32Array;
}

/** Values that a tap wants of one token and slot. */
function valuesPerSlot({ fields }: Tap, { hidden, width }: MlpShape): number {
  return (fields.includes("everyOutput") ? hidden : 0) + (fields.includes("everyUnit") ? width : 0);
}

/**
 * Cuts rows where what all slots compute from the wanted ones would take more than `limit` bytes, but not below one row.
 * @returns the end of every part
 */
export function everyParts(
  { tap, experts, shape, places }: Pick<EveryRequest, "tap" | "experts" | "shape" | "places">,
  limit: number,
): number[] {
  const bytes = 4 * experts.slots.length * valuesPerSlot(tap, shape);
  if (bytes === 0) return [places.length];
  const most = Math.max(1, Math.floor(limit / bytes));
  const ends: number[] = [];
  let wanted = 0;
  for (const [row, place] of places.entries()) {
    if (!isWanted(tap, place)) continue;
    if (wanted === most) {
      ends.push(row);
      wanted = 0;
    }
    wanted++;
  }
  return [...ends, places.length];
}

/**
 * What all slots compute from the wanted rows, chosen or not: one slot after the other, so that beside the results only
 * one slot's values exist.
 */
export async function runEvery(
  runtime: Runtime,
  sessions: Sessions,
  { tap, spec, experts, shape, normed, logits, places }: EveryRequest,
): Promise<EveryShown> {
  if (valuesPerSlot(tap, shape) === 0) return {};
  const { Tensor } = runtime;
  const { hidden, width } = shape;
  const slots = experts.slots.length;
  const everyRows = Int32Array.from(places.keys()).filter((row) => isWanted(tap, places[row] as number));
  const count = everyRows.length;
  const everyOutput = tap.fields.includes("everyOutput")
    ? new Float32Array(count * slots * hidden)
    : undefined;
  const everyUnit = tap.fields.includes("everyUnit") ? new Float32Array(count * slots * width) : undefined;
  const shown = { everyRows, ...(everyOutput && { everyOutput }), ...(everyUnit && { everyUnit }) };
  if (count === 0) return shown;

  const rows = new Tensor("float32", gather(normed, everyRows), [count, hidden]);
  const { plan, correction } = experts;
  const gates = spec.router.scalesInput
    ? gatesOfAll(gather(logits, everyRows), count, spec.router, { plan, correction })
    : undefined;
  const outputs = [...(everyUnit ? ["units" as const] : []), ...(everyOutput ? ["output" as const] : [])];
  const options = { outputs, ...(gates && { scalesInput: true as const }) };
  const key = `expert ${JSON.stringify({ ...shape, ...options })}`;
  for (const [slot, weights] of experts.slots.entries()) {
    const own = gates && Float32Array.from({ length: count }, (_, i) => gates[i * slots + slot] as number);
    const { units, output } = await sessions.run(key, () => expertGraph(shape, options), {
      rows,
      ...weights,
      ...(own && { gates: new Tensor("float32", own, [count, 1]) }),
    });
    if (everyUnit) spread(units as Tensor, slot, slots, everyUnit);
    if (everyOutput) spread(output as Tensor, slot, slots, everyOutput);
  }
  return shown;
}

function isWanted({ every }: Tap, place: number): boolean {
  return every === undefined || every[place] === 1;
}

function gather({ data, dims }: Tensor, rows: Int32Array): Float32Array {
  const size = dims[1] as number;
  const gathered = new Float32Array(rows.length * size);
  for (const [i, row] of rows.entries()) {
    gathered.set((data as Float32Array).subarray(row * size, (row + 1) * size), i * size);
  }
  return gathered;
}

/** Copies the values [M, size] of one slot into those of all, [M, slots, size]. */
function spread({ data, dims }: Tensor, slot: number, slots: number, all: Float32Array): void {
  const [count, size] = dims as [number, number];
  for (let row = 0; row < count; row++) {
    all.set((data as Float32Array).subarray(row * size, (row + 1) * size), (row * slots + slot) * size);
  }
}
