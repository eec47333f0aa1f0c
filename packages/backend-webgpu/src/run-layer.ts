import { type LayerPlan, type MoeModel, type MoeSpec, type RunRequest, skipRuleOf } from "@coppice/core";
import { addScaled, type GpuBuffer } from "@coppice/kernels-webgpu";
import type { Batch } from "./batch.js";
import { attendLayer } from "./layer.js";
import type { LayerWeights, Mlp, MoeWeights } from "./model-weights.js";
import { addShared, expertBytes, type MoeContext, runMlp, runRouted } from "./moe-block.js";
import type { PlannedExperts } from "./planned-experts.js";
import type { PlannedLayers } from "./planned-layers.js";
import { showLayer } from "./show-layer.js";
import { sparedRows } from "./spared-rows.js";

export interface LayerCall {
  readonly model: MoeModel;
  readonly index: number;
  readonly weights: LayerWeights;
  readonly plan: LayerPlan | undefined;
}

/**
 * Runs one layer on the residual stream hidden [tokens, hidden], in place.
 * @returns choices that ran, without those that are counted on the device
 */
export async function runLayer(
  context: MoeContext,
  { model, index, weights, plan }: LayerCall,
  layers: PlannedLayers,
  batch: Batch,
  hidden: GpuBuffer,
  tap: RunRequest["tap"],
): Promise<number> {
  const { attention, feedForward } = model.layers[index] as MoeModel["layers"][number];
  if (attention.kind === "other") throw new TypeError(`layer ${index} is ${attention.name}`);
  const { gpu, operators, workspace, half, hidden: size } = context;
  const { tokens, starts } = batch;
  const { residualScale = 1 } = model;
  const moe = feedForward.kind === "moe" ? feedForward : undefined;
  // Planned before anything is recorded: making experts reads from the device.
  const planned = moe && (await layers.experts(index, moe, weights.moe as MoeWeights, plan));
  const normed = workspace.take("normed", tokens * size);
  const added = workspace.take("added", tokens * size);
  const spare = (moe && skipRuleOf(moe.router, plan)?.spare) || 0;
  const run = { gpu, operators, workspace, batch, half };
  const received = await attendLayer(run, model, index, weights, { hidden, normed, added }, spare > 0);
  await operators.normalize({ ...weights.feedForwardNorm, x: hidden, y: normed, size, rows: tokens });
  let ran = 0;
  if (moe && planned && weights.moe) {
    const spared = received && (await sparedRows(context, received, normed, starts, spare, attention.heads));
    const skips = skipRuleOf(moe.router, plan) !== undefined;
    const call = { spec: moe, plan, weights: weights.moe, planned };
    const counted = skips ? context : { ...context, counts: workspace.take("uncounted", 1) };
    const block = { layer: index, hidden, normed, added, tokens, spared };
    const choices = await runMoe(counted, call, block, tap);
    if (!skips) ran = choices;
  } else await runMlp(context, weights.dense as Mlp, normed, tokens, added);
  addScaled(gpu, added, hidden, tokens * size, residualScale);
  return ran;
}

/** The MoE block, in blocks of tokens where its work buffers would be too large. @returns choices */
async function runMoe(
  context: MoeContext,
  call: { spec: MoeSpec; plan: LayerPlan | undefined; weights: MoeWeights; planned: PlannedExperts },
  block: {
    layer: number;
    hidden: GpuBuffer;
    normed: GpuBuffer;
    added: GpuBuffer;
    tokens: number;
    spared: Uint32Array | undefined;
  },
  tap: RunRequest["tap"],
): Promise<number> {
  const { gpu, workspace, hidden: size } = context;
  const { layer, hidden, normed, added, tokens } = block;
  const topK = Math.min(call.plan?.topK ?? call.spec.router.topK, call.planned.slotCount);
  const perToken = 4 * topK * Math.max(size, call.weights.experts.width);
  const most = Math.max(1, Math.floor(Math.min(expertBytes, gpu.maxBindingBytes) / perToken));
  let ran = 0;
  for (let from = 0; from < tokens; from += most) {
    const count = Math.min(most, tokens - from);
    const whole = count === tokens;
    const part = (name: string, buffer: GpuBuffer) => {
      if (whole) return buffer;
      const own = workspace.take(name, count * size);
      gpu.commands.copy(buffer, 4 * from * size, own, 0, 4 * count * size);
      return own;
    };
    const x = part("block input", normed);
    const y = whole ? added : workspace.take("block output", count * size);
    const spared = block.spared && workspace.put("spared", block.spared.subarray(from, from + count));
    const one = { ...call, spared };
    const run = await runRouted(context, one, x, count, y);
    if (tap) {
      const residual = part("block residual", hidden);
      await showLayer(context, one, { layer, from, residual, input: x, output: y }, run, tap);
    }
    await addShared(context, call.weights, x, count, y);
    if (!whole) gpu.commands.copy(y, 0, added, 4 * from * size, 4 * count * size);
    ran += count * run.topK;
  }
  return ran;
}
