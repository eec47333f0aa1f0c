import {
  CoppiceError,
  dtypeBytes,
  elementCount,
  type MoeModel,
  roundToDtype,
  type TensorRef,
} from "@coppice/core";
import { encodeValues } from "../decode.js";
import type { ExpertRows, ExpertTensors, SeparateTensor } from "../families/expert-tensors.js";
import type { SourceCache } from "../source-cache.js";
import {
  bytesContent,
  type Content,
  columnsContent,
  MergeScratch,
  rangeContent,
  repeatedContent,
} from "./content.js";
import {
  blockOf,
  checkMerges,
  checkSet,
  checkSharedBlocks,
  innerBytes,
  type ShareContext,
  type Shares,
  slotContent,
  stackShare,
} from "./expert-shares.js";
import { type ExpertSlot, type OwnSlot, slotFor, slotsIn } from "./expert-slots.js";
import type { ExportShape } from "./export-shape.js";
import { padBias } from "./padding.js";
import type { RouterEntry } from "./router-entries.js";
import type { OutputTensor } from "./shards.js";

/** What surgery needs of a loaded checkpoint. */
export interface SurgerySource {
  readonly model: MoeModel;
  readonly tensors: ReadonlyMap<string, TensorRef>;
  readonly edits: readonly ExpertTensors[];
  readonly sources: SourceCache;
}

interface Placed {
  readonly tensor: OutputTensor;
  readonly after: TensorRef;
}

/**
 * The tensors of the checkpoint that has the given shape, in the order of the files they come from, so that reading
 * stays sequential. Untouched tensors and kept experts are byte ranges and are never decoded.
 * @throws COPPICE_PLAN_EXPORT when experts cannot be merged as they are stored, COPPICE_FORMAT_SHAPE,
 * COPPICE_FORMAT_MISSING_TENSOR
 */
export function outputTensors(
  { model, tensors, edits, sources }: SurgerySource,
  shape: ExportShape,
): { tensors: OutputTensor[]; paddedBytes: number } {
  const layers = new Map(shape.layers.map((layer) => [layer.layer, layer]));
  const replaced = new Set<string>();
  const placed: Placed[] = [];
  let paddedBytes = 0;
  const context: ShareContext = {
    sources,
    scratch: new MergeScratch(),
    block: blockOf(model),
    padded: (bytes) => {
      paddedBytes += bytes;
    },
  };
  for (const set of edits) {
    const layer = layers.get(set.layer);
    if (!layer) continue;
    const slots = slotsIn(set, layer.slots);
    const entries = set.isMtp ? undefined : layer.router;
    if (!entries && isUnchanged(slots, set.experts)) continue;
    checkSet(set);
    checkSharedBlocks(model, set, slots);
    for (const { tensor } of [...set.rows, ...set.separate, ...set.stacked]) replaced.add(tensor.name);
    placed.push(
      ...set.rows.map((rows) => rowsTensor(context, rows, slots, entries)),
      ...separateTensors(context, set, slots),
      ...stackedTensors(context, set, slots),
    );
  }
  for (const ref of tensors.values()) {
    if (replaced.has(ref.name)) continue;
    const contents = [rangeContent(sources, ref.file, ref.begin, ref.end)];
    placed.push({ tensor: { name: ref.name, dtype: ref.dtype, shape: ref.shape, contents }, after: ref });
  }
  placed.sort((a, b) => compare(a.after.file, b.after.file) || a.after.begin - b.after.begin);
  return { tensors: placed.map(({ tensor }) => tensor), paddedBytes };
}

function isUnchanged(slots: readonly ExpertSlot[], experts: number): boolean {
  return slots.length === experts && slots.every((slot, i) => slot.kind === "expert" && slot.expert === i);
}

/**
 * Entries of the kept experts along an axis, in slot order; neighbouring ones are read together. Entries that the plan
 * gives take their place.
 */
function rowsTensor(
  context: ShareContext,
  { tensor, axis, role }: ExpertRows,
  slots: readonly ExpertSlot[],
  entries: ReadonlyMap<number, RouterEntry> | undefined,
): Placed {
  const { sources } = context;
  const outer = elementCount(tensor.shape.slice(0, axis));
  const width = innerBytes(tensor, axis);
  const shape = tensor.shape.map((size, i) => (i === axis ? slots.length : size));
  const pads = slots.filter(({ kind }) => kind === "pad").length;
  // Where nothing is filled up the bias need not fit the dtype, which is F16 in many quantized checkpoints.
  const pad = role === "weight" || pads === 0 ? Uint8Array.of(0) : valueBytes(padBias, tensor);
  context.padded(pads * width * outer);
  if (outer !== 1) {
    const filling = role === "weight" ? new Uint8Array(width) : pad;
    const columns = slots.map((slot) => (slot.kind === "pad" ? filling : slot.expert));
    const contents = [columnsContent(sources, tensor, outer, width, columns)];
    return { tensor: { name: tensor.name, dtype: tensor.dtype, shape, contents }, after: tensor };
  }
  const share = (expert: number) => ({
    ...tensor,
    begin: tensor.begin + expert * width,
    end: tensor.begin + (expert + 1) * width,
  });
  const entry = (slot: ExpertSlot): Content => {
    if (slot.kind === "pad") return repeatedContent(pad, width);
    const given = entries?.get(slot.expert)?.[role];
    if (given) return bytesContent(storedBytes(given, tensor));
    return rangeContent(sources, tensor.file, share(slot.expert).begin, share(slot.expert).end);
  };
  const isGiven = [...(entries?.values() ?? [])].some((given) => given[role]);
  const contents = isGiven ? slots.map(entry) : runs(sources, slots, share, entry);
  return { tensor: { name: tensor.name, dtype: tensor.dtype, shape, contents }, after: tensor };
}

function valueBytes(value: number, tensor: TensorRef): Uint8Array {
  const { dtype, name } = tensor;
  const values = Float32Array.of(value);
  roundToDtype(values, dtype);
  if (!(Math.abs((values[0] as number) / value - 1) < 0.01)) {
    throw new CoppiceError(
      "COPPICE_PLAN_EXPORT",
      `${name} is stored as ${dtype}, which cannot hold ${value}`,
    );
  }
  return storedBytes(values, tensor);
}

/** Values that are rounded to the dtype already. */
function storedBytes(values: Float32Array, { dtype }: Pick<TensorRef, "dtype">): Uint8Array {
  const bytes = new Uint8Array(values.length * dtypeBytes[dtype]);
  encodeValues(dtype, values, bytes);
  return bytes;
}

/** Contents of all slots; kept experts that follow one another in the file are one. */
function runs(
  sources: SourceCache,
  slots: readonly ExpertSlot[],
  share: (expert: number) => TensorRef,
  single: (slot: ExpertSlot) => Content,
): Content[] {
  const contents: Content[] = [];
  for (let at = 0; at < slots.length; ) {
    const slot = slots[at] as ExpertSlot;
    if (slot.kind !== "expert") {
      contents.push(single(slot));
      at++;
      continue;
    }
    const { file, begin } = share(slot.expert);
    let last = slot.expert;
    for (at++; ; at++) {
      const next = slots[at];
      if (next?.kind !== "expert" || next.expert !== last + 1) break;
      last = next.expert;
    }
    contents.push(rangeContent(sources, file, begin, share(last).end));
  }
  return contents;
}

function firstKept(slots: readonly ExpertSlot[]): number {
  return (slots.find(({ kind }) => kind !== "pad") as OwnSlot).expert;
}

/** Tensors of single experts get the number of their slot; all siblings of an expert travel with it. */
function separateTensors(context: ShareContext, set: ExpertTensors, slots: readonly ExpertSlot[]): Placed[] {
  const byExpert = new Map<number, SeparateTensor[]>();
  const byPattern = new Map<string, Map<number, SeparateTensor>>();
  for (const entry of set.separate) {
    const { expert, pattern } = entry;
    const own = byExpert.get(expert) ?? [];
    own.push(entry);
    byExpert.set(expert, own);
    const experts = byPattern.get(pattern) ?? new Map<number, SeparateTensor>();
    byPattern.set(pattern, experts.set(expert, entry));
  }
  const find = (pattern: string, expert: number): SeparateTensor => {
    const found = byPattern.get(pattern)?.get(expert);
    if (found) return found;
    const name = pattern.replace("{e}", String(expert));
    throw new CoppiceError(
      "COPPICE_FORMAT_MISSING_TENSOR",
      `the experts of ${set.label} cannot be merged: there is no ${name}`,
      { details: { tensor: name } },
    );
  };
  const first = firstKept(slots);
  return slots.flatMap((slot, position) => {
    const expert = slot.kind === "pad" ? first : slot.expert;
    return (byExpert.get(expert) ?? []).map(({ tensor, pattern, merge, partner, units }): Placed => {
      const name = pattern.replace("{e}", String(position));
      const shares: Shares = {
        name,
        merge,
        of: (other) => find(pattern, other).tensor,
        ...(partner && { partner: { of: (other) => find(pattern, other).partner } }),
        units,
      };
      const own = slotFor(slot, units);
      checkMerges(shares, [own], set.label, context);
      const contents = [slotContent(context, shares, own, first)];
      return { tensor: { name, dtype: tensor.dtype, shape: tensor.shape, contents }, after: tensor };
    });
  });
}

/** Stacks keep the parts of their experts, in slot order. */
function stackedTensors(context: ShareContext, set: ExpertTensors, slots: readonly ExpertSlot[]): Placed[] {
  const first = firstKept(slots);
  return set.stacked.map((stack): Placed => {
    const { tensor, rowsPerExpert, merge, partner } = stack;
    const other = set.stacked.find((candidate) => candidate.tensor.name === partner?.name);
    const shares: Shares = {
      name: tensor.name,
      merge,
      of: (expert) => stackShare(stack, expert, set.experts),
      ...(other && { partner: { of: (expert) => stackShare(other, expert, set.experts) } }),
      units: stack.units,
    };
    const own = slots.map((slot) => slotFor(slot, stack.units));
    checkMerges(shares, own, set.label, context);
    const contents = runs(context.sources, own, shares.of, (slot) =>
      slotContent(context, shares, slot, first),
    );
    const shape = [slots.length * rowsPerExpert, ...tensor.shape.slice(1)];
    return { tensor: { name: tensor.name, dtype: tensor.dtype, shape, contents }, after: tensor };
  });
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
