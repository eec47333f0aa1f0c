import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { reads, writes } from "./kernel.js";
import { groupIndex, mainOf, reduceCode, spread } from "./spread.js";

const threads = 128;

/**
 * What is wanted of logits where an answer is known: the natural logarithm of the probability of each target, and the most likely
 * token, ties to the lower id.
 * @param logits [rows, vocab]
 * @param targets [rows] u32
 * @param logProbs [rows] f32, written from row `from` on, as `argmax` is
 * @param argmax [rows] u32
 */
export function scoreTargets(
  gpu: Gpu,
  { logits, targets, logProbs, argmax }: Record<"logits" | "targets" | "logProbs" | "argmax", GpuBuffer>,
  { rows, vocab, from }: { readonly rows: number; readonly vocab: number; readonly from: number },
): void {
  const kernel = gpu.kernel("score-targets", () => ({
    name: "score-targets",
    params: { rows: "u32", vocab: "u32", start: "u32" },
    bindings: [
      reads("logits", "array<f32>"),
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
  if (t == 0u) {
    log_probs[p.start + row] = logits[begin + targets[p.start + row]] - most - log(sum);
    argmax[p.start + row] = best_id[0] - begin;
  }
}`,
  }));
  gpu.commands.dispatch(
    kernel,
    [logits, targets, logProbs, argmax],
    { rows, vocab, start: from },
    ...spread(rows),
  );
}
