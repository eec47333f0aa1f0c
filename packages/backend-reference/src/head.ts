import { type MoeModel, mostLikely, type RunResult } from "@coppice/core";
import { linear } from "./linear.js";
import { normalize } from "./norm.js";
import type { Scratch } from "./scratch.js";
import { floats } from "./scratch.js";
import type { Head } from "./weights.js";

/** Rows of logits held at once when only targets are wanted. */
const targetBlock = 32;

/** Logits, or what is wanted of them, at packed rows of the request; x is the last layer's output. */
export function runHead(
  model: MoeModel,
  head: Head,
  rows: Int32Array,
  targets: Int32Array | undefined,
  x: Float32Array,
  scratch: Scratch,
): Pick<RunResult, "logits" | "targetLogProbs" | "argmax"> {
  const { hiddenSize: hidden, vocabSize: vocab } = model;
  const count = rows.length;
  const normed = scratch.take("headInput", count * hidden);
  rows.forEach((row, r) => {
    normed.set(x.subarray(row * hidden, (row + 1) * hidden), r * hidden);
  });
  normalize(normed, count, hidden, head.norm, normed);
  const project = (input: Float32Array, inputRows: number, logits: Float32Array) => {
    linear(input, inputRows, head.weight, hidden, vocab, logits, head.bias);
    const { logitScale } = model;
    if (logitScale !== undefined)
      for (let i = 0; i < logits.length; i++) logits[i] = (logits[i] as number) * logitScale;
  };
  if (!targets) {
    const logits = floats(count * vocab);
    project(normed, count, logits);
    return { logits };
  }
  const targetLogProbs = new Float32Array(count);
  const argmax = new Int32Array(count);
  for (let start = 0; start < count; start += targetBlock) {
    const block = Math.min(targetBlock, count - start);
    const logits = scratch.take("targetLogits", block * vocab);
    project(normed.subarray(start * hidden), block, logits);
    for (let r = 0; r < block; r++) {
      const row = logits.subarray(r * vocab, (r + 1) * vocab);
      const best = mostLikely(row);
      argmax[start + r] = best;
      targetLogProbs[start + r] = logProbability(row, targets[start + r] as number, row[best] as number);
    }
  }
  return { targetLogProbs, argmax };
}

function logProbability(logits: Float32Array, target: number, max: number): number {
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp((logits[i] as number) - max);
  return (logits[target] as number) - max - Math.log(sum);
}
