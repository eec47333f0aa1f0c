import type { TensorRef } from "@coppice/core";
import { type GgufModel, unsupported } from "./architecture.js";
import type { GgufTensorInfo } from "./header.js";
import type { GgufFileType } from "./model-metadata.js";
import { type GgufTensorType, tensorTypes } from "./tensor-types.js";

/** A tensor of a file and where its values come from. */
export interface GgufTensor extends GgufTensorInfo {
  /** Matrices or vectors of one shape; several are stacked. */
  readonly parts: readonly TensorRef[];
  /**
   * Rows belong to heads of this many, whose first and second half are to alternate: the converter's `permute`, which
   * turns a rotation of halves into one of neighbours.
   */
  readonly headRows?: number;
}

/**
 * The tensors of a file in the names and layout of llama.cpp's converter: the experts of a layer are stacked. Norms and
 * routers stay F32, as there. Where most tensors are Q4_0 the head is Q8_0 (llama.cpp's own quantizer gives it more bits
 * than the rest, too), and the embedding when it is the head as well.
 * @throws COPPICE_EXPORT_UNSUPPORTED when rows are no whole blocks
 */
export function modelTensors({ model, architecture, layers }: GgufModel, type: GgufFileType): GgufTensor[] {
  const tensors: GgufTensor[] = [];
  const add = (name: string, type: GgufTensorType, ref: TensorRef, headRows?: number) =>
    tensors.push({ name, type, shape: ref.shape, parts: [ref], ...(headRows !== undefined && { headRows }) });
  const headType = type === "Q4_0" ? "Q8_0" : type;
  const isHead = model.tied && architecture.tiesHead;
  add("token_embd.weight", isHead ? headType : type, model.embedding);
  if (!isHead) add("output.weight", headType, model.head);
  addNorm("output_norm", model.finalNorm.weight);
  for (const { index, attention, attentionNorm, feedForward, feedForwardNorm } of layers) {
    const block = `blk.${index}`;
    const headRows = architecture.rotatesNeighbours ? attention.headDim : undefined;
    addNorm(`${block}.attn_norm`, attentionNorm.weight);
    add(`${block}.attn_q.weight`, type, attention.query.weight, headRows);
    add(`${block}.attn_k.weight`, type, attention.key.weight, headRows);
    add(`${block}.attn_v.weight`, type, attention.value.weight);
    add(`${block}.attn_output.weight`, type, attention.output.weight);
    addNorm(`${block}.attn_q_norm`, attention.queryNorm?.weight);
    addNorm(`${block}.attn_k_norm`, attention.keyNorm?.weight);
    addNorm(`${block}.ffn_norm`, feedForwardNorm.weight);
    add(`${block}.ffn_gate_inp.weight`, "F32", feedForward.router.weight);
    for (const part of ["gate", "up", "down"] as const) {
      const parts = feedForward.experts.flatMap((expert) => expert[part] ?? []);
      const shape = [parts.length, ...(parts[0]?.shape ?? [])];
      tensors.push({ name: `${block}.ffn_${part}_exps.weight`, type, shape, parts });
    }
  }
  for (const tensor of tensors) checkBlocks(tensor);
  return tensors;

  function addNorm(name: string, ref: TensorRef | undefined): void {
    if (ref) add(`${name}.weight`, "F32", ref);
  }
}

function checkBlocks({ name, type, shape }: GgufTensor): void {
  const { blockValues } = tensorTypes[type];
  const columns = shape.at(-1) as number;
  if (columns % blockValues === 0) return;
  throw unsupported(
    `rows of ${name} have ${columns} values, which is no multiple of ${blockValues}, the block of ${type}`,
    "write F16",
  );
}
