import {
  CoppiceError,
  dtypeBytes,
  elementCount,
  type MoeModel,
  moeLayers,
  quantizeBlocks,
  type TensorRef,
} from "@coppice/core";
import type { ExpertTensors, MergeRule, StackedTensor } from "../families/expert-tensors.js";
import type { SourceCache } from "../source-cache.js";
import { type Content, type MergeScratch, mergeContent, rangeContent, repeatedContent } from "./content.js";
import type { ExpertSlot } from "./export-shape.js";
import { quantizedContent, quantizedMatrix } from "./quantized-content.js";

/** One tensor of every expert, or the part of a stack that is an expert's. */
export interface Shares {
  /** How messages call it. */
  readonly name: string;
  readonly merge: MergeRule;
  of(expert: number): TensorRef;
  /** Of codes: their scales; of scales: their codes. */
  readonly partner?: { of(expert: number): TensorRef | undefined };
}

/** What shares need to become the contents of a new checkpoint. */
export interface ShareContext {
  readonly sources: SourceCache;
  readonly scratch: MergeScratch;
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
  const { experts, coefficients } = slot;
  if (coefficients.length === 1 && coefficients[0] === 1) return range(shares.of(experts[0] as number));
  const { name, merge } = shares;
  const own = shares.of(slot.expert);
  const refs = experts.map((expert) => shares.of(expert));
  if (merge === "plain") {
    return mergeContent(sources, context.scratch, refs, coefficients, own, name);
  }
  const part = merge === "codes" ? "codes" : "scales";
  const matrix = (expert: number) => {
    const [mine, other] = [shares.of(expert), shares.partner?.of(expert) as TensorRef];
    return part === "codes"
      ? quantizedMatrix(mine, other, context.block)
      : quantizedMatrix(other, mine, context.block);
  };
  return quantizedContent(
    sources,
    context.scratch,
    experts.map(matrix),
    coefficients,
    matrix(slot.expert),
    part,
    name,
  );
}

/**
 * Checks that the merges of a set of experts can be computed and stored.
 * @throws COPPICE_PLAN_EXPORT, COPPICE_FORMAT_DTYPE, COPPICE_FORMAT_SHAPE, COPPICE_FORMAT_MISSING_TENSOR
 */
export function checkMerges(
  shares: Shares,
  slots: readonly ExpertSlot[],
  label: string,
  context: Pick<ShareContext, "block">,
): void {
  for (const slot of slots) {
    if (slot.kind !== "merge") continue;
    const own = shares.of(slot.expert);
    for (const expert of slot.experts) {
      const other = shares.of(expert);
      if (other.dtype === own.dtype && other.shape.join() === own.shape.join()) continue;
      throw notMergeable(
        `${other.name} is ${other.dtype} [${other.shape.join(", ")}] and ${own.name} is ${own.dtype} [${own.shape.join(", ")}]`,
        label,
      );
    }
    if (slot.coefficients.length === 1 && slot.coefficients[0] === 1) continue;
    if (shares.merge === "opaque") {
      throw notMergeable(
        `${own.name} is packed (${own.dtype}), so its values cannot be computed anew`,
        label,
      );
    }
    if (shares.merge === "codes") {
      for (const expert of [slot.expert, ...slot.experts]) {
        const codes = shares.of(expert);
        const scales = shares.partner?.of(expert);
        if (!scales) {
          throw new CoppiceError("COPPICE_FORMAT_MISSING_TENSOR", `${codes.name} has no scales beside it`, {
            details: { tensor: codes.name },
          });
        }
        const matrix = quantizedMatrix(codes, scales, context.block);
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
  if (
    !slots.some(
      (slot) => slot.kind === "merge" && (slot.coefficients.length > 1 || slot.coefficients[0] !== 1),
    )
  ) {
    return;
  }
  const layer = moeLayers(model).find(({ index }) => index === set.layer);
  const [expert] = layer?.feedForward.experts ?? [];
  for (const ref of [expert?.gate, expert?.up, expert?.down]) {
    if (!ref?.view || !ref.scales || ref.scales.rows === 1) continue;
    throw notMergeable(`${ref.name} shares blocks of scales with another matrix`, set.label);
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
  for (const { tensor, pattern } of separate) {
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
