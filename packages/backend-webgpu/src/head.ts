import type { MoeModel, RunResult } from "@coppice/core";
import { copyRows, type GpuBuffer, norm, scoreTargets } from "@coppice/kernels-webgpu";
import type { ModelWeights } from "./model-weights.js";
import type { MoeContext } from "./moe-block.js";

/** Bytes of logits held at once on the device. */
const logitBytes = 64 * 1024 * 1024;

export type Head = NonNullable<ModelWeights["head"]>;

/** Targets at rows, each row once. */
export interface WantedTargets {
  /** Ascending. */
  readonly rows: Int32Array;
  /** [rows + 1]: where the targets of each row begin, and their number. */
  readonly starts: Uint32Array;
  readonly targets: Int32Array;
}

/** @param rows of each target, repeated for several targets of one row */
export function wantedTargets(rows: Int32Array, targets: Int32Array): WantedTargets {
  const own = new Int32Array(rows.length);
  const starts = new Uint32Array(rows.length + 1);
  let count = 0;
  for (let i = 0; i < rows.length; i++) {
    if (i > 0 && rows[i] === rows[i - 1]) continue;
    own[count] = rows[i] as number;
    starts[count++] = i;
  }
  starts[count] = rows.length;
  return { rows: own.subarray(0, count), starts: starts.subarray(0, count + 1), targets };
}

/** Logits, or what is wanted of them, at packed rows of the request; x is the last layer's output. */
export async function runHead(
  context: MoeContext,
  model: MoeModel,
  head: Head,
  rows: Int32Array,
  targets: Int32Array | undefined,
  x: GpuBuffer,
): Promise<Pick<RunResult, "logits" | "targetLogProbs" | "argmax">> {
  if (targets) {
    const { gpu, workspace, hidden } = context;
    if (rows.length === 0) return { targetLogProbs: new Float32Array(0), argmax: new Int32Array(0) };
    const wanted = wantedTargets(rows, targets);
    const input = workspace.take("head rows", wanted.rows.length * hidden);
    const index = workspace.put("head index", wanted.rows);
    copyRows(gpu, { x, y: input, rows: wanted.rows.length, size: hidden, index, kind: "gather" });
    return readTargets(context, await scoreHead(context, model, head, putTargets(context, wanted), input));
  }
  const logits = new Float32Array(rows.length * model.vocabSize);
  const most = rowsAtOnce(context, model);
  for (let from = 0; from < rows.length; from += most) {
    const block = rows.subarray(from, from + most);
    const y = await projectRows(context, model, head, block, x);
    logits.set(await context.gpu.readFloats(y, block.length * model.vocabSize), from * model.vocabSize);
  }
  return { logits };
}

/** `WantedTargets` on the device. */
export interface PutTargets {
  readonly rows: number;
  readonly count: number;
  readonly starts: GpuBuffer;
  readonly targets: GpuBuffer;
}

export function putTargets({ workspace }: MoeContext, { rows, starts, targets }: WantedTargets): PutTargets {
  return {
    rows: rows.length,
    count: targets.length,
    starts: workspace.put("target starts", starts),
    targets: workspace.put("targets", targets),
  };
}

/** Of each target, in buffers of the workspace. */
export interface ScoredTargets {
  readonly count: number;
  readonly logProbs: GpuBuffer;
  readonly argmax: GpuBuffer;
}

/** Scores targets on the device. @param x [rows, hidden] of the last layer's output */
export async function scoreHead(
  context: MoeContext,
  model: MoeModel,
  head: Head,
  { rows, count, starts, targets }: PutTargets,
  x: GpuBuffer,
): Promise<ScoredTargets> {
  const { gpu, workspace, hidden } = context;
  const logProbs = workspace.take("log-probabilities", count);
  const argmax = workspace.take("most likely tokens", count);
  const most = rowsAtOnce(context, model);
  for (let from = 0; from < rows; from += most) {
    const own = Math.min(most, rows - from);
    const input = workspace.take("head input", own * hidden);
    gpu.commands.copy(x, 4 * from * hidden, input, 0, 4 * own * hidden);
    const logits = await project(context, model, head, input, own);
    const size = { rows: own, vocab: model.vocabSize, from };
    scoreTargets(gpu, { logits, starts, targets, logProbs, argmax }, size);
  }
  return { count, logProbs, argmax };
}

export async function readTargets(
  { gpu }: MoeContext,
  { count, logProbs, argmax }: ScoredTargets,
): Promise<{ targetLogProbs: Float32Array; argmax: Int32Array }> {
  const [a, b] = await gpu.read([
    { buffer: logProbs, bytes: 4 * count },
    { buffer: argmax, bytes: 4 * count },
  ]);
  return { targetLogProbs: new Float32Array(a as ArrayBuffer), argmax: new Int32Array(b as ArrayBuffer) };
}

/** Rows of which all logits are held at once. */
export function rowsAtOnce({ gpu }: MoeContext, { vocabSize }: MoeModel): number {
  return Math.max(1, Math.floor(Math.min(logitBytes, gpu.maxBindingBytes) / (4 * vocabSize)));
}

/** Logits at packed rows of the request, [rows, vocab], in a buffer of the workspace. */
export function projectRows(
  context: MoeContext,
  model: MoeModel,
  head: Head,
  rows: Int32Array,
  x: GpuBuffer,
): Promise<GpuBuffer> {
  const { gpu, workspace, hidden } = context;
  const input = workspace.take("head input", rows.length * hidden);
  const index = workspace.put("head index", rows);
  copyRows(gpu, { x, y: input, rows: rows.length, size: hidden, index, kind: "gather" });
  return project(context, model, head, input, rows.length);
}

/** Logits of rows of the last layer's output, which are normed in place. */
async function project(
  { gpu, operators, workspace, half, hidden }: MoeContext,
  { vocabSize, logitScale: factor }: MoeModel,
  { norm: own, linear: { weight, bias } }: Head,
  input: GpuBuffer,
  rows: number,
): Promise<GpuBuffer> {
  norm(gpu, { ...own, x: input, size: hidden, rows });
  const y = workspace.take("logits", rows * vocabSize);
  await operators.multiply({ x: input, rows, weight, bias, y, factor, half });
  return y;
}
