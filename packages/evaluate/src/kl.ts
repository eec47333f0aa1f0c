import { CoppiceError, type Plan } from "@coppice/core";
import type { RunnerPart } from "./counting-runner.js";
import type { EncodedTask } from "./encode-task.js";
import { logSumExp } from "./evidence.js";
import type { MicroBatch } from "./micro-batch.js";

/** Logits held at once for each of the two models: 64 MB. */
const chunkValues = 16 * 1024 * 1024;

/**
 * KL(full || changed) = sum p_full (log p_full - log p_changed), in nats, per sample the mean over its positions.
 *
 * Rows of logits are large (hundreds of kilobytes in big vocabularies), so when they do not fit at once the last
 * layer runs again for each part of the positions, on kept activations.
 */
export async function klDivergences(
  { full: whole, changed, resumes }: ComparedRunners,
  task: EncodedTask,
  batch: MicroBatch,
  plan: Plan | undefined,
  signal: AbortSignal | undefined,
): Promise<number[]> {
  const { vocabSize } = whole.model;
  const full = await logitSource(whole, batch, undefined, true, signal);
  const pruned = await logitSource(changed, batch, plan, resumes, signal);
  const means: number[] = [];
  let s = 0;
  for (const index of batch.samples) {
    const sequences = task.samples[index]?.sequences ?? [];
    let sum = 0;
    let rows = 0;
    for (const { positions } of sequences) {
      for (let begin = 0; begin < positions.length; begin += full.rowsAtOnce) {
        const end = Math.min(positions.length, begin + full.rowsAtOnce);
        const p = await full.rows(s, begin, end);
        const q = await pruned.rows(s, begin, end);
        for (let row = 0; row < end - begin; row++) {
          sum += divergence(
            p.subarray(row * vocabSize, (row + 1) * vocabSize),
            q.subarray(row * vocabSize, (row + 1) * vocabSize),
          );
        }
        rows += end - begin;
      }
      s++;
    }
    means.push(sum / rows);
  }
  return means;
}

export interface ComparedRunners {
  readonly full: RunnerPart;
  /** Under the plan, and whatever limits its attention. */
  readonly changed: RunnerPart;
  /** Whether `changed` can run the last layer alone. */
  readonly resumes: boolean;
}

interface LogitSource {
  readonly rowsAtOnce: number;
  /** Logits of positions `begin` to `end` of sequence `s`. */
  rows(s: number, begin: number, end: number): Promise<Float32Array>;
}

async function logitSource(
  runner: RunnerPart,
  batch: MicroBatch,
  plan: Plan | undefined,
  resumes: boolean,
  signal: AbortSignal | undefined,
): Promise<LogitSource> {
  const { layers, vocabSize, hiddenSize } = runner.model;
  const common = { ...(plan && { plan }), ...(signal && { signal }) };
  const sequences = batch.sequences.map(({ ids }) => ids);
  const positions = batch.sequences.map((sequence) => sequence.positions);
  const starts = running(positions.map(({ length }) => length));
  const total = starts.at(-1) as number;
  const rowsAtOnce = Math.max(1, Math.floor(chunkValues / vocabSize));
  if (total <= rowsAtOnce) {
    const result = await runner.run({ sequences, positions, ...common });
    const logits = needed(result.logits);
    const row = (s: number, position: number) => ((starts[s] as number) + position) * vocabSize;
    return {
      rowsAtOnce,
      rows: async (s, begin, end) => logits.subarray(row(s, begin), row(s, end)),
    };
  }
  const from = resumes ? layers.length - 1 : 0;
  const tokenStarts = running(sequences.map(({ length }) => length));
  const hidden =
    from === 0
      ? undefined
      : needed(
          (await runner.run({ sequences, to: from, boundaries: [from], ...common })).boundaries.get(from),
        );
  return {
    rowsAtOnce,
    rows: async (s, begin, end) => {
      const result = await runner.run({
        sequences: [sequences[s] as Int32Array],
        positions: [(positions[s] as Int32Array).subarray(begin, end)],
        ...(hidden && {
          from,
          hidden: hidden.subarray(
            (tokenStarts[s] as number) * hiddenSize,
            (tokenStarts[s + 1] as number) * hiddenSize,
          ),
        }),
        ...common,
      });
      return needed(result.logits);
    },
  };
}

/** KL(softmax(p) || softmax(q)) of two rows of logits. */
export function divergence(p: Float32Array, q: Float32Array): number {
  const normalP = logSumExp(p);
  const normalQ = logSumExp(q);
  let sum = 0;
  for (let i = 0; i < p.length; i++) {
    const logP = (p[i] as number) - normalP;
    sum += Math.exp(logP) * (logP - ((q[i] as number) - normalQ));
  }
  // Rounding may leave equal distributions a hair below 0.
  return Math.max(0, sum);
}

/** Running sums, from 0. */
function running(lengths: readonly number[]): number[] {
  const sums = [0];
  for (const length of lengths) sums.push((sums.at(-1) as number) + length);
  return sums;
}

function needed(values: Float32Array | undefined): Float32Array {
  if (values) return values;
  throw new CoppiceError(
    "COPPICE_BACKEND_FAILED",
    "the backend returned no logits or boundary, which were asked for",
  );
}
