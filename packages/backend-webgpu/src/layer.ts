import type { MoeModel } from "@coppice/core";
import { addScaled, type GpuBuffer } from "@coppice/kernels-webgpu";
import { type AttentionContext, runAttention } from "./attention-block.js";
import type { LayerWeights } from "./model-weights.js";

/** The residual stream of a run and its work buffers, all [tokens, hidden]. */
export interface Stream {
  readonly hidden: GpuBuffer;
  readonly normed: GpuBuffer;
  readonly added: GpuBuffer;
}

/**
 * The first half of a layer: attention, and in `normed` what the second half reads.
 * @returns [tokens] f32, if wanted, as of `runAttention`
 */
export async function attendLayer(
  context: AttentionContext,
  model: MoeModel,
  index: number,
  weights: LayerWeights,
  { hidden, normed, added }: Stream,
  wantsReceived: boolean,
): Promise<GpuBuffer | undefined> {
  const { gpu, operators, batch } = context;
  const { hiddenSize: size, residualScale = 1 } = model;
  const { tokens: rows } = batch;
  const { attention } = model.layers[index] as MoeModel["layers"][number];
  if (attention.kind === "other") throw new TypeError(`layer ${index} is ${attention.name}`);
  await operators.normalize({ ...weights.attentionNorm, x: hidden, y: normed, size, rows });
  const received = await runAttention(
    context,
    attention,
    weights.attention,
    index,
    normed,
    added,
    wantsReceived,
  );
  addScaled(gpu, added, hidden, rows * size, residualScale);
  return received;
}
