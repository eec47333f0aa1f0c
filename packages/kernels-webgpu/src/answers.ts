import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { reads, writes } from "./kernel.js";
import { groupIndex, mainOf, reduceCode, spread } from "./spread.js";

const threads = 128;

/** Buffers of `scoreTargets`. */
export interface TargetBuffers {
  /** [rows, vocab] */
  readonly logits: GpuBuffer;
  /** u32: where the targets of every row of all begin, and their number at the end. */
  readonly starts: GpuBuffer;
  /** [targets] u32 */
  readonly targets: GpuBuffer;
  /** [targets] f32, written. */
  readonly logProbs: GpuBuffer;
  /** [targets] u32, written. */
  readonly argmax: GpuBuffer;
}

/**
 * What is wanted of logits where an answer is known: the natural logarithm of the probability of each target, and the most likely
 * token of its row, ties to the lower id.
 * @param size `from`: which of all rows is the first of `logits`
 */
export function scoreTargets(
  gpu: Gpu,
  { logits, starts, targets, logProbs, argmax }: TargetBuffers,
  { rows, vocab, from }: { readonly rows: number; readonly vocab: number; readonly from: number },
): void {
  const kernel = gpu.kernel("score-targets", () => ({
    name: "score-targets",
    params: { rows: "u32", vocab: "u32", start: "u32" },
    bindings: [
      reads("logits", "array<f32>"),
      reads("starts", "array<u32>"),
      reads("targets", "array<u32>"),
      writes("log_probs", "array<f32>"),
      writes("argmax", "array<u32>"),
    ],
    code: `
var<workgroup> best_value: array<f32, ${threads}>;
var<workgroup> best_id: array<u32, ${threads}>;
${reduceCode("add_all", "sum", threads)}
${mainOf(threads)} {
  let row = ${groupIndex};
  if (row >= p.rows) { return; }
  let begin = row * p.vocab;
  var best = begin + min(t, p.vocab - 1u);
  for (var i = begin + t; i < begin + p.vocab; i += ${threads}u) { if (logits[i] > logits[best]) { best = i; } }
  best_value[t] = logits[best];
  best_id[t] = best;
  for (var step = ${threads / 2}u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (t < step) {
      let other = best_value[t + step];
      if (other > best_value[t] || (other == best_value[t] && best_id[t + step] < best_id[t])) {
        best_value[t] = other;
        best_id[t] = best_id[t + step];
      }
    }
  }
  workgroupBarrier();
  let most = best_value[0];
  var part = 0.0;
  for (var i = begin + t; i < begin + p.vocab; i += ${threads}u) { part += exp(logits[i] - most); }
  let sum = add_all(t, part);
  for (var i = starts[p.start + row] + t; i < starts[p.start + row + 1u]; i += ${threads}u) {
    log_probs[i] = logits[begin + targets[i]] - most - log(sum);
    argmax[i] = best_id[0] - begin;
  }
}`,
  }));
  gpu.commands.dispatch(
    kernel,
    [logits, starts, targets, logProbs, argmax],
    { rows, vocab, start: from },
    ...spread(rows),
  );
}
