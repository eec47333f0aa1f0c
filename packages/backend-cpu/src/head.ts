import type { MoeModel } from "@coppice/core";
import { type HeadShape, headGraph, normShape } from "@coppice/onnx";
import type { Feeds, Runtime, Sessions } from "./sessions.js";

/** Values of logits computed at once; 64 MiB, enough rows that reading the head's weights does not dominate. */
const mostLogits = 2 ** 24;

export interface HeadOutputs {
  readonly logits?: Float32Array;
  readonly targetLogProbs?: Float32Array;
  readonly argmax?: Int32Array;
}

/** Arrays for the results of R wanted positions. */
export function allocateOutputs(rows: number, vocab: number, score: boolean): HeadOutputs {
  if (!score) return { logits: new Float32Array(rows * vocab) };
  return { targetLogProbs: new Float32Array(rows), argmax: new Int32Array(rows) };
}

/**
 * Final norm and head over distinct rows [U, hidden].
 * @param wanted for each wanted position its index among all wanted positions and its row here; ascending by row
 * @param outputs receives the results at those indices
 */
export async function runHead(
  runtime: Runtime,
  sessions: Sessions,
  model: MoeModel,
  weights: Feeds,
  rows: Float32Array,
  wanted: readonly { readonly index: number; readonly row: number }[],
  targets: Int32Array | undefined,
  outputs: HeadOutputs,
): Promise<void> {
  const { hiddenSize: hidden, vocabSize: vocab, finalNorm, headBias, logitScale } = model;
  const shape: HeadShape = {
    hidden,
    vocab,
    norm: normShape(finalNorm),
    bias: headBias !== undefined,
    ...(logitScale !== undefined && { logitScale }),
  };
  const score = targets !== undefined;
  const key = `head ${JSON.stringify({ ...shape, score })}`;
  const total = rows.length / hidden;
  const size = Math.max(1, Math.floor(mostLogits / vocab));
  const { Tensor } = runtime;
  let next = 0;
  for (let from = 0; from < total; from += size) {
    const to = Math.min(from + size, total);
    const here: { index: number; row: number }[] = [];
    for (; next < wanted.length && (wanted[next]?.row ?? 0) < to; next++) {
      here.push(wanted[next] as { index: number; row: number });
    }
    const picks = new BigInt64Array(2 * here.length);
    for (const [p, { index, row }] of here.entries()) {
      picks[2 * p] = BigInt(row - from);
      picks[2 * p + 1] = BigInt(targets?.[index] ?? 0);
    }
    const results = await sessions.run(key, () => headGraph(shape, { score }), {
      hidden: new Tensor("float32", rows.subarray(from * hidden, to * hidden), [to - from, hidden]),
      ...weights,
      ...(score && { picks: new Tensor("int64", picks, [here.length, 2]) }),
    });
    const logits = results.logits?.data as Float32Array | undefined;
    const logProbs = results.logProbs?.data as Float32Array | undefined;
    const argmax = results.argmax?.data as Int32Array | undefined;
    for (const [p, { index, row }] of here.entries()) {
      if (logits) {
        const at = (row - from) * vocab;
        outputs.logits?.set(logits.subarray(at, at + vocab), index * vocab);
      }
      if (outputs.targetLogProbs && logProbs) outputs.targetLogProbs[index] = logProbs[p] as number;
      if (outputs.argmax && argmax) outputs.argmax[index] = argmax[row - from] as number;
    }
  }
}
