import {
  CoppiceError,
  dtypeBytes,
  elementCount,
  type MoeModel,
  moeLayers,
  quantizeBlocks,
  roundToStored,
  type TensorRef,
} from "@coppice/core";
import type { ExpertTensors, MergeRule, StackedTensor, UnitPlaces } from "../families/expert-tensors.js";
import { type Content, mergeContent, rangeContent, repeatedContent } from "./content.js";
import { type ExpertSlot, type OwnSlot, sourcesOf } from "./expert-slots.js";
import { type MatrixPart, mergedContent } from "./merged-content.js";
import {
  changedMatrix,
  linearMatrix,
  type MergedMatrix,
  type MergeMemory,
  unitMatrix,
} from "./merged-matrix.js";
import { quantizedMatrix } from "./quantized-matrix.js";

/** One tensor of every expert, or the part of a stack that is an expert's. */
export interface Shares {
  /** How messages call it. */
  readonly name: string;
  readonly merge: MergeRule;
  of(expert: number): TensorRef;
  /** Of codes: their scales; of scales: their codes. */
  readonly partner?: { of(expert: number): TensorRef | undefined };
  /** Absent: hidden units do not lie in it. */
  readonly units?: UnitPlaces | undefined;
}

/** What shares need to become the contents of a new checkpoint. */
export interface ShareContext extends MergeMemory {
  /** Rows and columns of a block of quantized weights, where shapes leave it open. */
  readonly block: readonly [number, number] | undefined;
  /** Told of the bytes of experts that fill up. */
  padded(bytes: number): void;
}

/** The part of a stack that is an expert's, as a tensor. */
export function stackShare(
  { tensor, rowsPerExpert }: StackedTensor,
  expert: number,
  experts: number,
): TensorRef {
  const bytes = (tensor.end - tensor.begin) / experts;
  const begin = tensor.begin + expert * bytes;
  const [, ...rest] = tensor.shape;
  const shape = rowsPerExpert === 1 ? rest : [rowsPerExpert, ...rest];
  return { ...tensor, shape, begin, end: begin + bytes };
}

/**
 * The bytes of a slot. Experts that fill up get zeros; what gives other bytes their meaning (scales, packed formats,
 * single values) is that of the first real expert instead, so that it stays valid.
 * @param slot what it is for these shares (`slotFor`)
 * @param first a real expert of the layer
 */
export function slotContent(context: ShareContext, shares: Shares, slot: ExpertSlot, first: number): Content {
  const { sources } = context;
  const range = ({ file, begin, end }: TensorRef) => rangeContent(sources, file, begin, end);
  if (slot.kind === "expert") return range(shares.of(slot.expert));
  if (slot.kind === "pad") {
    const share = shares.of(first);
    const bytes = share.end - share.begin;
    context.padded(bytes);
    const isWeight = shares.merge === "plain" || shares.merge === "codes";
    return isWeight && elementCount(share.shape) > 1
      ? repeatedContent(Uint8Array.of(0), bytes)
      : range(share);
  }
  const { name, merge } = shares;
  if (slot.kind === "merge") {
    const { experts, coefficients } = slot;
    if (isOneExpert(slot)) return range(shares.of(experts[0] as number));
    if (merge === "plain") {
      const refs = experts.map((expert) => shares.of(expert));
      return mergeContent(sources, context.scratch, refs, coefficients, shares.of(slot.expert), name);
    }
  }
  const stored = shareMatrix(shares, slot.expert, context);
  return mergedContent(slotMatrix(context, shares, slot, stored), stored, merge as MatrixPart, name);
}

/** The matrix of a slot before it is rounded to the form of `stored`. */
function slotMatrix(context: ShareContext, shares: Shares, slot: OwnSlot, stored: TensorRef): MergedMatrix {
  const units = shares.units as UnitPlaces;
  if (slot.kind === "changed") {
    const rest = slotMatrix(context, shares, slot.rest, stored);
    return changedMatrix(rest, slot.delta, stored, units.axis === 0);
  }
  const refs = sourcesOf(slot).map((expert) => shareMatrix(shares, expert, context));
  if (slot.kind === "units") return unitMatrix(context, slot.units, refs, units, stored);
  return linearMatrix(context, refs, slot.kind === "merge" ? slot.coefficients : [1], stored);
}

/** The matrix [R, C] that an expert's share is, or is a part of. */
function shareMatrix(shares: Shares, expert: number, { block }: Pick<ShareContext, "block">): TensorRef {
  const own = shares.of(expert);
  if (shares.merge === "plain") {
    const [rows = 1] = own.shape;
    return { ...own, shape: [rows, elementCount(own.shape) / rows] };
  }
  const other = shares.partner?.of(expert);
  if (!other) {
    throw new CoppiceError("COPPICE_FORMAT_MISSING_TENSOR", `${own.name} has no scales beside it`, {
      details: { tensor: own.name },
    });
  }
  return shares.merge === "codes" ? quantizedMatrix(own, other, block) : quantizedMatrix(other, own, block);
}

/** With a single coefficient of 1 a merge is that expert itself, in its own form. */
function isOneExpert({ coefficients }: { readonly coefficients: readonly number[] }): boolean {
  return coefficients.length === 1 && coefficients[0] === 1;
}

/**
 * Checks that the merges and changes of a set of experts can be computed and stored.
 * @param slots what they are for these shares (`slotFor`)
 * @throws COPPICE_PLAN_EXPORT, COPPICE_FORMAT_DTYPE, COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_MISSING_TENSOR
 */
export function checkMerges(
  shares: Shares,
  slots: readonly ExpertSlot[],
  label: string,
  context: Pick<ShareContext, "block">,
): void {
  for (const slot of slots) {
    if (slot.kind === "expert" || slot.kind === "pad") continue;
    const own = shares.of(slot.expert);
    const experts = sourcesOf(slot);
    for (const expert of experts) {
      const other = shares.of(expert);
      if (other.dtype === own.dtype && other.shape.join() === own.shape.join()) continue;
      throw notMergeable(
        `${other.name} is ${other.dtype} [${other.shape.join(", ")}] and ${own.name} is ${own.dtype} [${own.shape.join(", ")}]`,
        label,
      );
    }
    if (slot.kind === "merge" && isOneExpert(slot)) continue;
    if (shares.merge === "opaque") {
      throw notMergeable(
        `${own.name} is packed (${own.dtype}), so its values cannot be computed anew`,
        label,
      );
    }
    if (shares.merge === "codes") {
      for (const expert of [slot.expert, ...experts]) {
        const matrix = shareMatrix(shares, expert, context);
        // Refuses dtypes that core does not quantize to.
        quantizeBlocks(new Float32Array(1), {
          ...matrix,
          shape: [1, 1],
          scales: { ...(matrix.scales as NonNullable<TensorRef["scales"]>), stored: [1, 1] },
        });
      }
    } else if (own.dtype !== "F64" && own.dtype !== "F32" && own.dtype !== "F16" && own.dtype !== "BF16") {
      if (shares.merge === "plain" && own.dtype !== "F8_E4M3") {
        throw notMergeable(
          `${own.name} is stored as ${own.dtype}, to which no computed value is rounded`,
          label,
        );
      }
    }
  }
}

/**
 * Refuses merges of matrices that share blocks with others (gate and up in one stack of fp8 whose border cuts through
 * a block): no evaluation could round them to what a file holds.
 * @throws COPPICE_PLAN_EXPORT
 */
export function checkSharedBlocks(model: MoeModel, set: ExpertTensors, slots: readonly ExpertSlot[]): void {
  const computes = (slot: ExpertSlot): boolean =>
    slot.kind === "units" || (slot.kind === "merge" && !isOneExpert(slot));
  const merges = slots.some((slot) => computes(slot.kind === "changed" ? slot.rest : slot));
  const changes = merges || slots.some(({ kind }) => kind === "changed");
  const layer = moeLayers(model).find(({ index }) => index === set.layer);
  const [expert] = layer?.feedForward.experts ?? [];
  const computed = [...(merges ? [expert?.gate, expert?.up] : []), ...(changes ? [expert?.down] : [])];
  for (const ref of computed) {
    if (!ref?.view || !ref.scales || hasOwnBlocks(ref)) continue;
    throw notMergeable(`${ref.name} shares blocks of scales with another matrix`, set.label);
  }
}

/** Whether core, and so every backend, rounds values in the blocks of the tensor. */
function hasOwnBlocks(ref: TensorRef): boolean {
  try {
    roundToStored(new Float32Array(0), ref);
    return true;
  } catch {
    return false;
  }
}

function notMergeable(why: string, label: string): CoppiceError {
  return new CoppiceError("COPPICE_PLAN_EXPORT", `the experts of ${label} cannot be merged: ${why}`, {
    hint: "give a plan that only drops experts, or merge the unquantized checkpoint",
  });
}

/** Block size of the model's quantized weights where they have several blocks in both directions. */
export function blockOf(model: MoeModel): readonly [number, number] | undefined {
  for (const { feedForward } of moeLayers(model)) {
    for (const { gate, up, down } of feedForward.experts) {
      for (const ref of [gate, up, down]) {
        const scales = ref?.scales;
        if (scales?.format !== "scaled" || scales.rows === 1 || scales.columns === 1) continue;
        if (scales.rows < scales.stored[0] || scales.columns < scales.stored[1])
          return [scales.rows, scales.columns];
      }
    }
  }
  return undefined;
}

/**
 * Checks what the description of a set promises, so that nothing is cut at the wrong place.
 * @throws COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_MISSING_TENSOR
 */
export function checkSet({ label, experts, rows, separate, stacked }: ExpertTensors): void {
  const mismatch = (ref: TensorRef, expected: string) =>
    new CoppiceError(
      "COPPICE_FORMAT_SHAPE",
      `${ref.name} of ${label} has shape [${ref.shape.join(", ")}], expected ${expected}`,
      { details: { tensor: ref.name, shape: ref.shape } },
    );
  for (const { tensor, axis } of rows) {
    if (tensor.shape[axis] !== experts) throw mismatch(tensor, `${experts} experts along axis ${axis}`);
  }
  for (const { tensor, rowsPerExpert } of stacked) {
    if (tensor.shape[0] !== experts * rowsPerExpert) {
      throw mismatch(
        tensor,
        `${experts * rowsPerExpert} along axis 0, ${rowsPerExpert} of each of ${experts} experts`,
      );
    }
  }
  const first = new Map<string, TensorRef>();
  for (const { tensor, pattern, merge } of separate) {
    // Packed weights may have other bits in every expert.
    if (merge === "opaque") continue;
    const key = `${pattern} ${tensor.dtype}`;
    const other = first.get(key) ?? tensor;
    first.set(key, other);
    if (other.shape.join() !== tensor.shape.join()) {
      throw mismatch(tensor, `[${other.shape.join(", ")}] as ${other.name}`);
    }
  }
}

/** Bytes of an element, for axes that are cut. */
export function innerBytes(ref: TensorRef, axis: number): number {
  return elementCount(ref.shape.slice(axis + 1)) * dtypeBytes[ref.dtype];
}
