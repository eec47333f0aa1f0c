import { gatesOfAll, type LayerTap } from "@coppice/core";
import { runMlp } from "./mlp.js";
import type { MoeCall } from "./moe.js";
import type { Scratch } from "./scratch.js";

export type EveryField = "everyOutput" | "everyUnit";

/**
 * What all slots compute from some tokens, whether these chose them or not; where gate weights scale inputs, with the
 * gate weights that they would have.
 * @param rows of `input` [tokens, hidden] and `logits` [tokens, router rows], M of them
 */
export function runEvery(
  { spec, plan, experts }: Pick<MoeCall, "spec" | "plan" | "experts">,
  { input, logits }: { readonly input: Float32Array; readonly logits: Float32Array },
  rows: Int32Array,
  hidden: number,
  fields: readonly EveryField[],
  scratch: Scratch,
): Pick<LayerTap, EveryField> {
  const { slots, router, routerRows } = experts;
  const count = rows.length;
  const width = slots[0]?.width ?? 0;
  const take = (field: EveryField, size: number) =>
    fields.includes(field) ? scratch.take(field, count * slots.length * size) : undefined;
  const everyOutput = take("everyOutput", hidden);
  const everyUnit = take("everyUnit", width);
  const x = gather(input, hidden, rows, scratch.take("everyInput", count * hidden));
  const gates =
    spec.router.scalesInput && count > 0
      ? gatesOfAll(
          gather(logits, routerRows, rows, scratch.take("everyLogits", count * routerRows)),
          count,
          spec.router,
          { plan, correction: router.correction },
        )
      : undefined;
  const scaled = gates ? scratch.take("everyScaled", count * hidden) : x;
  const output = scratch.take("expertOutput", count * hidden);
  slots.forEach((expert, slot) => {
    if (gates) {
      for (let i = 0; i < scaled.length; i++) {
        const gate = gates[Math.floor(i / hidden) * slots.length + slot] as number;
        scaled[i] = gate * (x[i] as number);
      }
    }
    const units = runMlp(expert, scaled, count, hidden, output, scratch);
    for (let row = 0; row < count; row++) {
      const at = row * slots.length + slot;
      everyOutput?.set(output.subarray(row * hidden, (row + 1) * hidden), at * hidden);
      everyUnit?.set(units.subarray(row * width, (row + 1) * width), at * width);
    }
  });
  return { ...(everyOutput && { everyOutput }), ...(everyUnit && { everyUnit }) };
}

function gather(values: Float32Array, size: number, rows: Int32Array, out: Float32Array): Float32Array {
  rows.forEach((row, i) => {
    out.set(values.subarray(row * size, (row + 1) * size), i * size);
  });
  return out;
}
