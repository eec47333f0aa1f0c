import type {
  AttentionSpec,
  CheckedRunRequest,
  GroupedQueryAttentionSpec,
  LatentAttentionSpec,
  MoeModel,
} from "@coppice/core";
import {
  type AttentionCall,
  type AttentionShape,
  type AttentionSight,
  attendPrefill,
  attendSplit,
  attentionReceived,
  clip,
  copyRows,
  type Gpu,
  type GpuBuffer,
  keepRows,
  norm,
  rotate,
  scaleRows,
  splitBytes,
  unfoldLatent,
} from "@coppice/kernels-webgpu";
import type { AttentionLimits } from "./attention-limits.js";
import type { Batch } from "./batch.js";
import type { AttentionUse } from "./check-attention-kernels.js";
import type { GroupedQueryWeights, LatentWeights, Linear, Norm } from "./model-weights.js";
import type { Operators } from "./operators.js";
import { promptMasks } from "./prompt-masks.js";
import type { Workspace } from "./workspace.js";

export interface AttentionContext {
  readonly gpu: Gpu;
  readonly operators: Operators;
  readonly workspace: Workspace;
  readonly batch: Batch;
  readonly half: boolean;
}

interface Projected {
  readonly queries: GpuBuffer;
  readonly keys: GpuBuffer;
  readonly values: GpuBuffer;
}

/** Up to so many tokens of a sequence, workgroups per query fill a device better than tiles of queries. */
export const splitTokens = 32;

const splits = (most: number, tokens: number, heads: number) =>
  most <= splitTokens && tokens * heads <= 65535;

/** Which kernels a run needs. */
export function attentionUse(
  model: MoeModel,
  { starts, tokens }: Pick<CheckedRunRequest, "starts" | "tokens">,
  { spans, masks }: AttentionLimits,
): AttentionUse {
  const most = Math.max(...Array.from(starts.subarray(1), (end, s) => end - (starts[s] as number)));
  const tiles = model.layers.some(
    ({ attention }) => attention.kind !== "other" && !splits(most, tokens, attention.heads),
  );
  return { tiles, spans: spans.size > 0, masks: masks !== undefined };
}

/**
 * Attention of the normed input x [tokens, hidden] into y [tokens, hidden]; extends the cache if there is one.
 * @returns [tokens] f32, if wanted: the attention that each token gets from itself and later tokens of this run
 */
export async function runAttention(
  context: AttentionContext,
  spec: Exclude<AttentionSpec, { kind: "other" }>,
  weights: GroupedQueryWeights | LatentWeights,
  layer: number,
  x: GpuBuffer,
  y: GpuBuffer,
  wantsReceived: boolean,
): Promise<GpuBuffer | undefined> {
  const { gpu, operators, workspace, batch } = context;
  const { tokens, tiles, tileCount, queryTile, rows, masks } = batch;
  const shape = shapeOf(spec);
  const projected =
    spec.kind === "gqa"
      ? await projectGrouped(context, spec, weights as GroupedQueryWeights, x)
      : await projectLatent(context, spec, weights as LatentWeights, x);
  const mask =
    masks?.layers.has(layer) && spec.kind === "gqa"
      ? await promptMasks(gpu, workspace, masks, layer, spec, batch.spans, projected.queries, projected.keys)
      : undefined;
  const stored = store(context, shape, layer, projected);
  const mixed = workspace.take("mixed", tokens * shape.heads * shape.valueDim);
  const call: AttentionCall = {
    shape,
    queries: projected.queries,
    ...stored,
    ...(mask && { sight: { kind: "blocks", table: mask } }),
    sinks: spec.kind === "gqa" ? (weights as GroupedQueryWeights).sinks : undefined,
    tokens,
    tiles,
    tileCount,
    queryTile,
    rows,
    y: mixed,
  };
  const prompt = call.sight || call.sinks ? undefined : promptOf(batch);
  const attended = prompt && (await operators.attend({ shape, ...prompt, ...projected, y: mixed }));
  if (!attended) {
    if (!mask && splits(batch.most, tokens, shape.heads)) {
      attendSplit(gpu, call, workspace.take("partial", splitBytes(shape, tokens, stored.longest) / 4));
    } else attendPrefill(gpu, call);
  }
  await project(context, weights.output, mixed, y);
  return wantsReceived ? received(context, call) : undefined;
}

/** The sequences of a batch, if they are whole and equally long. */
function promptOf({ spans, most }: Batch): { sequences: number; length: number } | undefined {
  const isPrompt = spans.every(({ tokens, past }) => past === 0 && tokens === most);
  return isPrompt ? { sequences: spans.length, length: most } : undefined;
}

/** Extends the cache, if there is one. @returns the keys and values that queries read */
function store(
  { gpu, batch }: AttentionContext,
  shape: AttentionShape,
  layer: number,
  { keys, values }: Projected,
): Pick<AttentionCall, "keys" | "values" | "sight" | "longest"> {
  const { tokens, rows, cache, sights, longest } = batch;
  const { kvHeads, keyDim, valueDim } = shape;
  const limited = sights?.layers.get(layer);
  if (sights && limited) {
    const sight = (first: number, stride: number): AttentionSight & { kind: "spans" } => ({
      kind: "spans",
      table: sights.table,
      first,
      stride,
    });
    const { kept, fresh } = limited;
    if (kept) {
      const call = { tokens, kvHeads, rows, sight: sight(kept.first, 1) };
      keepRows(gpu, { ...call, x: keys, size: keyDim, y: kept.keys });
      keepRows(gpu, { ...call, x: values, size: valueDim, y: kept.values });
      if (fresh === undefined) return { ...kept, sight: call.sight, longest: limited.longest };
    }
    return { keys, values, sight: sight(fresh as number, kvHeads), longest: limited.longest };
  }
  if (!cache) return { keys, values, longest };
  const [keySize, valueSize] = [kvHeads * keyDim, kvHeads * valueDim];
  const own = cache.reserve(layer, batch.capacity, keySize, valueSize);
  const index = batch.keyRows as GpuBuffer;
  copyRows(gpu, { x: keys, y: own.keys, rows: tokens, size: keySize, index, kind: "scatter" });
  copyRows(gpu, { x: values, y: own.values, rows: tokens, size: valueSize, index, kind: "scatter" });
  return { keys: own.keys, values: own.values, longest };
}

export function shapeOf(spec: Exclude<AttentionSpec, { kind: "other" }>): AttentionShape {
  const { heads, scale, slidingWindow: window = 0 } = spec;
  if (spec.kind === "gqa") {
    const { kvHeads, headDim, chunk = 0 } = spec;
    return { heads, kvHeads, keyDim: headDim, valueDim: headDim, scale, window, chunk };
  }
  const keyDim = spec.nopeDim + spec.rotary.dimensions;
  return { heads, kvHeads: heads, keyDim, valueDim: spec.valueDim, scale, window, chunk: 0 };
}

async function project(
  { operators, batch, half }: AttentionContext,
  linear: Linear,
  x: GpuBuffer,
  y: GpuBuffer,
): Promise<GpuBuffer> {
  await operators.multiply({ x, rows: batch.tokens, weight: linear.weight, bias: linear.bias, y, half });
  return y;
}

/** In the order that `GroupedQueryAttentionSpec` defines. */
async function projectGrouped(
  context: AttentionContext,
  spec: GroupedQueryAttentionSpec,
  weights: GroupedQueryWeights,
  x: GpuBuffer,
): Promise<Projected> {
  const { gpu, workspace, batch } = context;
  const { tokens } = batch;
  const { heads, kvHeads, headDim, rotary, normAfterRotary, temperature } = spec;
  const turned = async (name: string, linear: Linear, own: Norm | undefined, over: string, count: number) => {
    const out = await project(context, linear, x, workspace.take(name, tokens * linear.outputs));
    const size = over === "head" ? headDim : count * headDim;
    const normed = () => own && norm(gpu, { ...own, x: out, size, rows: (tokens * count * headDim) / size });
    if (!normAfterRotary) normed();
    if (spec.clip !== undefined) clip(gpu, out, tokens * count * headDim, spec.clip);
    const turn = rotary && batch.rotary.get(rotary);
    if (turn) {
      const { dimensions, interleaved } = rotary;
      rotate(gpu, { x: out, tokens, heads: count, headDim, offset: 0, dimensions, interleaved, ...turn });
    }
    if (normAfterRotary) normed();
    return out;
  };
  const queries = await turned(
    "queries",
    weights.query,
    weights.queryNorm,
    spec.queryNorm?.over ?? "head",
    heads,
  );
  const keys = await turned("keys", weights.key, weights.keyNorm, spec.keyNorm?.over ?? "head", kvHeads);
  const values = await project(
    context,
    weights.value,
    x,
    workspace.take("values", tokens * weights.value.outputs),
  );
  if (spec.clip !== undefined) clip(gpu, values, tokens * kvHeads * headDim, spec.clip);
  const factors = temperature && batch.temperatures.get(temperature);
  if (factors) scaleRows(gpu, queries, tokens, heads * headDim, factors);
  return { queries, keys, values };
}

/** Unfolded, so that a token gives the same with a cache and without. */
async function projectLatent(
  context: AttentionContext,
  spec: LatentAttentionSpec,
  weights: LatentWeights,
  x: GpuBuffer,
): Promise<Projected> {
  const { gpu, workspace, batch } = context;
  const { tokens } = batch;
  const { heads, nopeDim, valueDim, rank, rotary } = spec;
  const { dimensions: rotaryDim, interleaved } = rotary;
  const keyDim = nopeDim + rotaryDim;
  const run = (name: string, linear: Linear, input: GpuBuffer) =>
    project(context, linear, input, workspace.take(name, tokens * linear.outputs));
  let low = x;
  if (weights.queryDown) {
    low = await run("low queries", weights.queryDown, x);
    if (weights.queryNorm)
      norm(gpu, { ...weights.queryNorm, x: low, size: weights.query.inputs, rows: tokens });
  }
  const queries = await run("queries", weights.query, low);
  const down = await run("folded", weights.kvDown, x);
  const latents = workspace.take("latents", tokens * rank);
  norm(gpu, { ...weights.kvNorm, x: down, y: latents, size: rank, rows: tokens, stride: rank + rotaryDim });
  const unfolded = await run("unfolded", weights.kvUp, latents);
  const turn = batch.rotary.get(rotary);
  if (turn) {
    const shared = { tokens, dimensions: rotaryDim, interleaved, ...turn };
    rotate(gpu, { ...shared, x: queries, heads, headDim: keyDim, offset: nopeDim });
    rotate(gpu, { ...shared, x: down, heads: 1, headDim: rank + rotaryDim, offset: rank });
  }
  const keys = workspace.take("keys", tokens * heads * keyDim);
  const values = workspace.take("values", tokens * heads * valueDim);
  unfoldLatent(gpu, { unfolded, down, keys, values, tokens, heads, nopeDim, valueDim, rank, rotaryDim });
  return { queries, keys, values };
}

function received({ gpu, workspace, batch }: AttentionContext, call: AttentionCall): GpuBuffer {
  const out = workspace.take("received", batch.tokens);
  const totals = workspace.take("totals", 2 * batch.tokens * call.shape.heads);
  attentionReceived(gpu, call, totals, out);
  return out;
}
