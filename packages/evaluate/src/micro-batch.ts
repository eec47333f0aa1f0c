import { raceParts, type WorkPace } from "@coppice/core";
import type { EncodedSequence, EncodedTask } from "./encode-task.js";

/** Samples that run together. All sequences of a sample are in one batch. */
export interface MicroBatch {
  /** Indices into the task's samples. */
  readonly samples: readonly number[];
  /** The sequences of those samples, one sample after the other. */
  readonly sequences: readonly EncodedSequence[];
  /** Tokens of all sequences. */
  readonly tokens: number;
}

/**
 * About this many tokens run at once: enough to fill matrix products and to compute equal beginnings of prompts once,
 * few enough to bound memory and to hear an abort soon.
 */
const batchTokens = 1_024;
/** Batches that a task is cut into at least, so that up to four workers get shards of equal size ... */
const minBatches = 4;
/** ... and a part of it into these, for two workers ... */
const minPartBatches = 2;
/** ... unless batches would become smaller than this, where a token costs half as much again. */
const minBatchTokens = 256;

/**
 * Cuts a task into batches of about equal size, samples of similar length together. The cut depends on nothing but
 * the task: results of a sample are the same bits for any number of workers, because it always runs in the same
 * company.
 * @param pace of the runner: a device gets batches that fill it, however few they are
 */
export function microBatches(task: EncodedTask, pace?: WorkPace): MicroBatch[] {
  return cut(task, Array.from(task.samples.keys()), minBatches, pace);
}

/** The micro-batches of every part of a task (`raceParts` of core), so that a part can be evaluated alone. */
export function partBatches(task: EncodedTask, pace?: WorkPace): MicroBatch[][] {
  const samples = Array.from(task.samples.keys());
  const count = raceParts(samples.length);
  return Array.from({ length: count }, (_, part) =>
    cut(
      task,
      samples.filter((sample) => sample % count === part),
      count === 1 ? minBatches : minPartBatches,
      pace,
    ),
  );
}

function cut(
  task: EncodedTask,
  chosen: readonly number[],
  fewest: number,
  pace: WorkPace | undefined,
): MicroBatch[] {
  const lengths = task.samples.map(({ sequences }) =>
    sequences.reduce((sum, { ids }) => sum + ids.length, 0),
  );
  const order = [...chosen].sort((a, b) => (lengths[a] as number) - (lengths[b] as number) || a - b);
  const total = order.reduce((sum, i) => sum + (lengths[i] as number), 0);
  const least = pace ? 1 : Math.min(fewest, Math.max(1, Math.floor(total / minBatchTokens)));
  const count = Math.max(least, Math.ceil(total / (pace?.batchTokens ?? batchTokens)));
  const batches: MicroBatch[] = [];
  let samples: number[] = [];
  let tokens = 0;
  let before = 0;
  for (const i of order) {
    const length = lengths[i] as number;
    // A batch ends at the sample whose middle lies beyond the batch's share of all tokens.
    const end = ((batches.length + 1) * total) / count;
    if (samples.length > 0 && before + tokens + length / 2 > end) {
      batches.push(batch(task, samples, tokens));
      before += tokens;
      samples = [];
      tokens = 0;
    }
    samples.push(i);
    tokens += length;
  }
  if (samples.length > 0) batches.push(batch(task, samples, tokens));
  return batches;
}

/**
 * Shares batches out to workers: the largest first, each to the worker with the least tokens so far (LPT; R. Graham,
 * SIAM J. Appl. Math. 17, 1969). Shards may be empty when there are more workers than batches.
 */
export function shardBatches(batches: readonly MicroBatch[], workers: number): MicroBatch[][] {
  const shards = Array.from({ length: workers }, () => ({ tokens: 0, indices: [] as number[] }));
  const order = batches.map((_, i) => i);
  order.sort((a, b) => (batches[b] as MicroBatch).tokens - (batches[a] as MicroBatch).tokens || a - b);
  for (const i of order) {
    const least = shards.reduce((best, shard) => (shard.tokens < best.tokens ? shard : best));
    least.tokens += (batches[i] as MicroBatch).tokens;
    least.indices.push(i);
  }
  return shards.map(({ indices }) => indices.sort((a, b) => a - b).map((i) => batches[i] as MicroBatch));
}

function batch(task: EncodedTask, samples: readonly number[], tokens: number): MicroBatch {
  const sequences = samples.flatMap((i) => task.samples[i]?.sequences ?? []);
  return { samples, sequences, tokens };
}
