import type { TensorRef } from "@coppice/core";
import { containerOf, type ExpertPlace, stackNames, unknownSibling } from "./expert-edits.js";
import type { ExpertTensors } from "./expert-tensors.js";
import type { ExpertLayout, SharedDescription } from "./family.js";
import type { NameIndex } from "./name-index.js";

/**
 * Refuses tensors in the module of router and experts that are no part of either and have an entry for every expert by
 * their shape: left as they are they would keep entries of experts that are gone.
 * @throws COPPICE_FORMAT_QUANTIZED
 */
export function checkBeside(
  { experts, rows, separate, stacked }: ExpertTensors,
  layout: ExpertLayout,
  { name }: ExpertPlace,
  shared: SharedDescription | undefined,
  index: NameIndex,
): void {
  const known = new Set([...rows, ...separate, ...stacked].map(({ tensor }) => tensor.name));
  const names = [shared?.names.gate, shared?.names.up, shared?.names.down, shared?.gate];
  const sharedBases = names.flatMap((one) => (one === undefined ? [] : [`${name(one)}.`]));
  const first =
    layout.kind === "separate" ? containerOf(layout, name) : name(stackNames(layout)[0] as string);
  const container = first.slice(0, first.lastIndexOf(".") + 1);
  for (const full of index.under(commonModule(name(layout.router), first))) {
    if (known.has(full) || sharedBases.some((base) => full.startsWith(base))) continue;
    const { shape } = index.get(full) as TensorRef;
    const isVector = shape.every((size) => size === 1 || size === experts);
    const last = full.startsWith(container) || isVector ? shape.at(-1) : undefined;
    if (shape[0] === experts || last === experts) throw unknownSibling(full);
  }
}

/** What two names begin with, up to a dot. */
function commonModule(a: string, b: string): string {
  let end = 0;
  while (end < a.length && a[end] === b[end]) end++;
  return a.slice(0, a.slice(0, end).lastIndexOf(".") + 1);
}
