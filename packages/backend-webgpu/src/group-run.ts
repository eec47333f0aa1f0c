import type { MoeModel, MoeSpec, RunResult } from "@coppice/core";
import { addScaled, copyRows, embed, type Gpu, type GpuBuffer, mergeExperts } from "@coppice/kernels-webgpu";
import { limitsOf } from "./attention-limits.js";
import { type Batch, prepareBatch } from "./batch.js";
import type { ExpertPool } from "./expert-pool.js";
import { type GroupTables, groupTables } from "./group-tables.js";
import type { GroupJob } from "./groupable.js";
import { putTargets, scoreHead, type WantedTargets } from "./head.js";
import type { BoundaryStore, DeviceBoundary } from "./held-boundary.js";
import { attendLayer } from "./layer.js";
import type { LayerWeights, Mlp, ModelWeights, MoeWeights } from "./model-weights.js";
import { addShared, type MoeContext, runMlp, runShared } from "./moe-block.js";
import type { Operators } from "./operators.js";
import type { PlannedExperts } from "./planned-experts.js";
import type { RotaryTables } from "./rotary-tables.js";
import type { Workspace } from "./workspace.js";

/** What runs are computed with. */
export interface GroupContext {
  readonly gpu: Gpu;
  readonly operators: Operators;
  readonly model: MoeModel;
  readonly weights: ModelWeights;
  readonly workspace: Workspace;
  readonly rotary: RotaryTables;
  readonly boundaries: BoundaryStore;
  readonly half: boolean;
  /** By layer. */
  readonly pools: ReadonlyMap<number, ExpertPool>;
  /** By layer, the experts as they are stored. */
  readonly whole: ReadonlyMap<number, PlannedExperts>;
}

/** A run with its place in a group. */
interface Member {
  readonly job: GroupJob;
  /** First row among the tokens of the group. */
  readonly start: number;
  readonly held: Map<number, DeviceBoundary>;
}

/**
 * Records runs as one batch: those that begin at a later layer lie behind the others and join them there. Behind the attention of the
 * last layer only rows that targets are scored at go on.
 * @returns reads the results
 */
export async function recordGroup(
  context: GroupContext,
  jobs: readonly GroupJob[],
): Promise<() => Promise<RunResult[]>> {
  const { gpu, operators, model, weights, workspace, boundaries } = context;
  const { hiddenSize: size, layers } = model;
  let tokens = 0;
  const members = [...jobs]
    .sort((a, b) => a.checked.from - b.checked.from)
    .map((job): Member => {
      const start = tokens;
      tokens += job.checked.tokens;
      return { job, start, held: new Map() };
    });
  const first = members[0]?.job.checked.from as number;
  // Many sequences fill a device with tiles of queries, however short they are.
  const batch: Batch = {
    ...prepareBatch(
      model,
      { ...joinedStarts(members), tokens, from: first, to: layers.length },
      undefined,
      limitsOf(model, undefined),
      context.rotary,
      workspace,
    ),
    most: Number.POSITIVE_INFINITY,
  };
  const wanted = joinedTargets(members);
  const scored = {
    index: workspace.put("head index", wanted.rows),
    runs: new Uint32Array(wanted.rows.length),
  };
  const runs = new Uint32Array(tokens);
  let row = 0;
  members.forEach(({ job, start }, run) => {
    runs.fill(run, start, start + job.checked.tokens);
    scored.runs.fill(run, row, row + job.wanted.rows.length);
    row += job.wanted.rows.length;
  });
  const tables = groupTables(
    context,
    members.map(({ job }) => job),
    first,
  );
  const own: Own = {
    ...context,
    tables,
    runs: workspace.put("runs", runs),
    places: workspace.put("blocks", blockNumbers(tables.mostBlocks)),
  };
  const last = {
    index: scored.index,
    runs: workspace.put("runs of rows", scored.runs),
    rows: wanted.rows.length,
  };
  const moe: MoeContext = {
    gpu,
    operators,
    workspace,
    half: context.half,
    hidden: size,
    counts: workspace.take("uncounted", 1),
  };
  const targets = putTargets(moe, wanted);
  const stream = {
    hidden: workspace.take("hidden", tokens * size),
    normed: workspace.take("normed", tokens * size),
    added: workspace.take("added", tokens * size),
  };
  begin(context, members, stream.hidden);
  let output = stream.hidden;
  let active = 0;
  let part = batch;
  for (let layer = first; layer < layers.length; layer++) {
    const joined = members.filter(({ job }) => job.checked.from <= layer);
    for (const { job, start } of joined.slice(active)) {
      const { held } = job.request;
      if (held)
        boundaries.restore(held, layer, stream.hidden, 4 * start * size, 4 * job.checked.tokens * size);
    }
    if (joined.length > active) part = firstTokens(batch, joined);
    active = joined.length;
    const layerWeights = weights.layers.get(layer) as LayerWeights;
    mergeLayer(own, layer);
    await attendLayer(
      { gpu, operators, workspace, batch: part, half: context.half },
      model,
      layer,
      layerWeights,
      stream,
      false,
    );
    if (layer + 1 < layers.length) {
      await feedForward(own, moe, layer, layerWeights, stream, part.tokens, own.runs);
      for (const { job, start, held } of joined) {
        if (!job.request.hold?.includes(layer + 1)) continue;
        const bytes = 4 * job.checked.tokens * size;
        held.set(layer + 1, boundaries.hold(layer + 1, stream.hidden, 4 * start * size, bytes));
      }
      continue;
    }
    output = workspace.take("head rows", last.rows * size);
    copyRows(gpu, { x: stream.hidden, y: output, rows: last.rows, size, index: last.index, kind: "gather" });
    await feedForward(own, moe, layer, layerWeights, { ...stream, hidden: output }, last.rows, last.runs);
  }
  const { logProbs, argmax } = await scoreHead(
    moe,
    model,
    weights.head as NonNullable<ModelWeights["head"]>,
    targets,
    output,
  );
  const reading = gpu.read([
    { buffer: logProbs, bytes: 4 * targets.count },
    { buffer: argmax, bytes: 4 * targets.count },
  ]);
  // What is wrong with it is said where it is awaited.
  reading.catch(() => {});
  return async () => {
    const [a, b] = await reading.catch((error) => {
      for (const { held } of members) for (const one of held.values()) one.dispose();
      throw error;
    });
    const found = { logProbs: new Float32Array(a as ArrayBuffer), argmax: new Int32Array(b as ArrayBuffer) };
    let at = 0;
    const results = new Map<GroupJob, RunResult>();
    for (const { job, held } of members) {
      const { length } = job.wanted.targets;
      results.set(job, {
        targetLogProbs: found.logProbs.slice(at, at + length),
        argmax: found.argmax.slice(at, at + length),
        boundaries: new Map(),
        held,
        ...workOf(model, job),
      });
      at += length;
    }
    return jobs.map((job) => results.get(job) as RunResult);
  };
}

interface Own extends GroupContext {
  readonly tables: GroupTables;
  readonly runs: GpuBuffer;
  readonly places: GpuBuffer;
}

/** What the first layers of runs read, where it is not held. */
function begin(
  { gpu, model, weights, workspace }: GroupContext,
  members: readonly Member[],
  hidden: GpuBuffer,
): void {
  const ids: Int32Array[] = [];
  for (const { job, start } of members) {
    const { request, checked } = job;
    if (request.hidden) gpu.write(hidden, request.hidden, 4 * start * model.hiddenSize);
    if (checked.from === 0) ids.push(...request.sequences);
  }
  if (ids.length === 0) return;
  const packed = new Uint32Array(ids.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const sequence of ids) {
    packed.set(sequence, at);
    at += sequence.length;
  }
  const embedding = weights.embedding as NonNullable<ModelWeights["embedding"]>;
  embed(gpu, embedding, workspace.put("ids", packed), packed.length, hidden, model.embeddingScale);
}

function mergeLayer({ gpu, pools, tables, weights }: Own, layer: number): void {
  const merges = tables.layers.get(layer)?.merges;
  const pool = pools.get(layer);
  const experts = weights.layers.get(layer)?.moe?.experts;
  if (!merges || !pool || !experts) return;
  const { units, down } = pool.matrices;
  mergeExperts(gpu, experts.units.matrix, units, tables.buffer, merges);
  mergeExperts(gpu, experts.down.matrix, down, tables.buffer, merges);
}

/** The second half of a layer: hidden += experts(norm(hidden)). */
async function feedForward(
  { gpu, operators, model, pools, whole, tables, places }: Own,
  context: MoeContext,
  layer: number,
  weights: LayerWeights,
  { hidden, normed, added }: { hidden: GpuBuffer; normed: GpuBuffer; added: GpuBuffer },
  rows: number,
  runs: GpuBuffer,
): Promise<void> {
  const { hiddenSize: size, residualScale = 1 } = model;
  await operators.normalize({ ...weights.feedForwardNorm, x: hidden, y: normed, size, rows });
  const table = tables.layers.get(layer);
  if (table) {
    const moe = weights.moe as MoeWeights;
    const pool = pools.get(layer) as ExpertPool;
    const call = {
      spec: model.layers[layer]?.feedForward as MoeSpec,
      whole: whole.get(layer) as PlannedExperts,
      stacks: pool.stacks,
      planned: { runs, table: tables.buffer, start: table.start, stride: tables.stride },
      places,
      blocks: table.blocks,
    };
    await runShared(context, call, moe.experts, normed, rows, added);
    await addShared(context, moe, normed, rows, added);
  } else await runMlp(context, weights.dense as Mlp, normed, rows, added);
  addScaled(gpu, added, hidden, rows * size, residualScale);
}

/** The part of a batch that its first members are. */
function firstTokens(batch: Batch, joined: readonly Member[]): Batch {
  const tokens = joined.reduce((sum, { job }) => sum + job.checked.tokens, 0);
  if (tokens === batch.tokens) return batch;
  const sequences = joined.reduce((sum, { job }) => sum + job.request.sequences.length, 0);
  const spans = batch.spans.slice(0, sequences);
  const tileCount = spans.reduce((sum, span) => sum + Math.ceil(span.tokens / batch.queryTile), 0);
  return { ...batch, tokens, spans, tileCount, starts: batch.starts.subarray(0, sequences + 1) };
}

function joinedStarts(members: readonly Member[]): { starts: Int32Array } {
  const starts = new Int32Array(1 + members.reduce((sum, { job }) => sum + job.request.sequences.length, 0));
  let at = 1;
  for (const { job, start } of members) {
    for (const end of job.checked.starts.subarray(1)) starts[at++] = start + end;
  }
  return { starts };
}

function joinedTargets(members: readonly Member[]): WantedTargets {
  const sum = (of: (wanted: WantedTargets) => number) =>
    members.reduce((all, { job }) => all + of(job.wanted), 0);
  const rows = new Int32Array(sum((wanted) => wanted.rows.length));
  const starts = new Uint32Array(rows.length + 1);
  const targets = new Int32Array(sum((wanted) => wanted.targets.length));
  let [row, target] = [0, 0];
  for (const { job, start } of members) {
    const { wanted } = job;
    for (let i = 0; i < wanted.rows.length; i++, row++) {
      rows[row] = start + (wanted.rows[i] as number);
      starts[row] = target + (wanted.starts[i] as number);
    }
    targets.set(wanted.targets, target);
    target += wanted.targets.length;
  }
  starts[row] = target;
  return { rows, starts, targets };
}

const blockNumbers = (count: number) => Uint32Array.from({ length: count }, (_, i) => i);

/** Of the last layer, rows that no target is scored at get attention alone. */
function workOf(
  { layers }: MoeModel,
  { checked: { tokens, from }, wanted }: GroupJob,
): Pick<RunResult, "tokenLayers" | "expertTokens"> {
  const rows = wanted.rows.length;
  const expertTokens = layers.slice(from).reduce((sum, { feedForward: own }, i, all) => {
    if (own.kind !== "moe") return sum;
    return sum + own.router.topK * (i + 1 === all.length ? rows : tokens);
  }, 0);
  return { tokenLayers: tokens * (layers.length - from - 1) + rows, expertTokens };
}
