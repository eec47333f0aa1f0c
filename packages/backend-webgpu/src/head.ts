import type { MoeModel, RunResult } from "@coppice/core";
import { copyRows, type GpuBuffer, matmul, norm, scoreTargets } from "@coppice/kernels-webgpu";
import type { ModelWeights } from "./model-weights.js";
import type { MoeContext } from "./moe-block.js";

/** Bytes of logits held at once on the device. */
const logitBytes = 64 * 1024 * 1024;

/** Logits, or what is wanted of them, at packed rows of the request; x is the last layer's output. */
export async function runHead(
  { gpu, workspace, half, hidden }: MoeContext,
  model: MoeModel,
  head: NonNullable<ModelWeights["head"]>,
  rows: Int32Array,
  targets: Int32Array | undefined,
  x: GpuBuffer,
): Promise<Pick<RunResult, "logits" | "targetLogProbs" | "argmax">> {
  const { vocabSize: vocab, logitScale: factor } = model;
  const count = rows.length;
  const logits = targets ? undefined : new Float32Array(count * vocab);
  const logProbs = workspace.take("log-probabilities", count);
  const argmax = workspace.take("most likely tokens", count);
  const wanted = targets && workspace.put("targets", targets);
  const most = Math.max(1, Math.floor(Math.min(logitBytes, gpu.maxBindingBytes) / (4 * vocab)));
  for (let from = 0; from < count; from += most) {
    const block = rows.subarray(from, Math.min(count, from + most));
    const input = workspace.take("head input", block.length * hidden);
    const index = workspace.put("head rows", block);
    copyRows(gpu, { x, y: input, rows: block.length, size: hidden, index, kind: "gather" });
    norm(gpu, { ...head.norm, x: input, size: hidden, rows: block.length });
    const y = workspace.take("logits", block.length * vocab);
    const { weight, bias } = head.linear;
    matmul(gpu, { x: input, rows: block.length, weight, bias, y, factor, half });
    if (wanted)
      scoreTargets(
        gpu,
        { logits: y, targets: wanted, logProbs, argmax },
        { rows: block.length, vocab, from },
      );
    else logits?.set(await gpu.readFloats(y, block.length * vocab), from * vocab);
  }
  if (logits) return { logits };
  if (count === 0) return { targetLogProbs: new Float32Array(0), argmax: new Int32Array(0) };
  const [a, b] = await gpu.read([
    { buffer: logProbs, bytes: 4 * count },
    { buffer: argmax, bytes: 4 * count },
  ]);
  return { targetLogProbs: new Float32Array(a as ArrayBuffer), argmax: new Int32Array(b as ArrayBuffer) };
}
