import { type BlockMask, checkBlockMask, type GroupedQueryAttentionSpec } from "@coppice/core";
import { type Gpu, type GpuBuffer, maskTable, type SequenceSpan } from "@coppice/kernels-webgpu";
import type { AttentionMasks } from "./attention-limits.js";
import type { Workspace } from "./workspace.js";

/**
 * Shows a masker queries and keys of the prompts of a run, which come back from the device for it.
 * @param queries [tokens, heads * headDim]
 * @param keys [tokens, kvHeads * headDim]
 * @returns the table of block masks; undefined where all prompts see everything
 * @throws COPPICE_ATTENTION_INVALID
 */
export async function promptMasks(
  gpu: Gpu,
  workspace: Workspace,
  { prefill }: AttentionMasks,
  layer: number,
  { heads, kvHeads, headDim: keyDim, scale }: GroupedQueryAttentionSpec,
  sequences: readonly SequenceSpan[],
  queries: GpuBuffer,
  keys: GpuBuffer,
): Promise<GpuBuffer | undefined> {
  const prompts = sequences.flatMap(({ row, tokens, past }, sequence) =>
    past === 0 && tokens > 1 ? [{ row, tokens, sequence }] : [],
  );
  if (prompts.length === 0) return undefined;
  const rows = (buffer: GpuBuffer, size: number) =>
    prompts.map(({ row, tokens }) => ({ buffer, byte: 4 * row * size, bytes: 4 * tokens * size }));
  const read = await gpu.read([...rows(queries, heads * keyDim), ...rows(keys, kvHeads * keyDim)]);
  const shown = read.map((bytes) => new Float32Array(bytes));
  const masks = new Array<BlockMask | undefined>(sequences.length).fill(undefined);
  for (const [i, { tokens, sequence }] of prompts.entries()) {
    const [own, all] = [shown[i], shown[prompts.length + i]] as [Float32Array, Float32Array];
    const view = { layer, sequence, scale, heads, kvHeads, keyDim, tokens };
    const mask = prefill({ ...view, queries: own, keys: all });
    if (mask) checkBlockMask(mask, heads, tokens);
    masks[sequence] = mask;
  }
  if (masks.every((mask) => mask === undefined)) return undefined;
  return workspace.put("mask", maskTable(masks));
}
