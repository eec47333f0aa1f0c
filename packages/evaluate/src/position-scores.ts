import {
  CoppiceError,
  checkWholeNumber,
  type MoeModel,
  type Plan,
  type RunEmitter,
  type Runner,
  startProgress,
  throwIfAborted,
} from "@coppice/core";
import type { CachingRunner } from "./continue-batch.js";
import { type EncodedSample, type EncodedTask, encodeTask } from "./encode-task.js";
import { bootstrapMean, type Interval } from "./intervals.js";
import { limitedRunner, type TextAttention } from "./limited-runner.js";
import { checkLengths } from "./long-context-task.js";
import { type MicroBatch, microBatches } from "./micro-batch.js";
import type { TextTask } from "./task.js";
import type { Tokenizer } from "./tokenizer.js";

/** Perplexity of the tokens at some positions of windows, with its 95 % interval over windows. */
export interface PositionScore extends Interval {
  /** First position within the window. */
  readonly from: number;
  /** The position behind the last. */
  readonly to: number;
  /** Tokens of all windows. */
  readonly tokens: number;
}

/** Perplexity by position in windows of one length. */
export interface PositionScores extends Interval {
  /** Tokens of each window. */
  readonly length: number;
  readonly windows: number;
  readonly positions: readonly PositionScore[];
}

export interface PositionTask {
  readonly task: TextTask;
  /** Tokens of a window. */
  readonly length: number;
  /** Equal parts that positions are put together to. Default 8. */
  readonly parts?: number;
  /** First windows only. */
  readonly limit?: number;
}

export interface EvaluatePositionsOptions extends PositionTask {
  /** Not disposed. */
  readonly runner: Runner;
  readonly tokenizer: Tokenizer;
  /** Default: the model as it is. */
  readonly plan?: Plan;
  /** Default: as the model is. */
  readonly attention?: TextAttention;
  readonly signal?: AbortSignal;
  /** Gets `progress` after every batch. */
  readonly emitter?: RunEmitter;
}

const defaultParts = 8;
/** More parts make no table that anyone reads. */
const mostParts = 1_000;

/**
 * Perplexity by position: texts are cut into windows of exactly `length` tokens, each is run at once, and the log-probabilities of its
 * tokens are put together by where they stand. A model that makes use of what is far back has lower perplexity in later parts;
 * one whose attention lost it does not. A rest that fills no window is left out.
 * @throws COPPICE_TASK_EMPTY when no text fills a window, COPPICE_TASK_TOO_LONG, COPPICE_USAGE, COPPICE_ABORTED, and what the runner
 * throws
 */
export async function evaluatePositions(options: EvaluatePositionsOptions): Promise<PositionScores> {
  const { runner, tokenizer, plan, attention, signal, emitter } = options;
  const windows = encodePositions(runner.model, tokenizer, options);
  const total = windows.task.samples.length;
  const tell = startProgress(emitter, "evaluating", "samples");
  let done = 0;
  const sums = await scorePositions({
    runner,
    windows,
    plan,
    attention,
    signal,
    onSamples: (count) => {
      done += count;
      tell(done, total);
    },
  });
  return combinePositions([sums]);
}

/** A position task for one model and tokenizer. Plain data. */
export interface EncodedPositions {
  readonly task: EncodedTask;
  readonly length: number;
  readonly parts: number;
}

/** Cuts the texts into whole windows. @throws COPPICE_TASK_EMPTY, COPPICE_TASK_TOO_LONG, COPPICE_USAGE */
export function encodePositions(
  model: MoeModel,
  tokenizer: Tokenizer,
  { task, length, parts = defaultParts, limit }: PositionTask,
): EncodedPositions {
  checkLengths([length], model);
  checkWholeNumber("parts", parts, Math.min(mostParts, length));
  if (limit !== undefined) checkWholeNumber("limit", limit);
  const encoded = encodeTask(task, { tokenizer, model, window: length });
  const tokensOf = ({ sequences }: EncodedSample) => (sequences[0]?.ids.length ?? 0) + 1;
  const samples = encoded.samples.filter((sample) => tokensOf(sample) === length).slice(0, limit);
  if (samples.length === 0) {
    const longest = Math.max(...encoded.samples.map(tokensOf));
    throw new CoppiceError(
      "COPPICE_TASK_EMPTY",
      `${task.name} has no text that fills a window of ${length} tokens; its longest has ${longest}`,
      {
        hint: "give longer texts, such as a whole .txt file, or a smaller length",
        details: { length, longest },
      },
    );
  }
  return { task: { ...encoded, samples }, length, parts };
}

/** Of some windows, the sums of their log-probabilities per part. */
export interface PositionSums {
  /** Tokens of a window. */
  readonly length: number;
  /** [part], scored tokens of a window. */
  readonly counts: readonly number[];
  /** Indices of the windows. */
  readonly windows: readonly number[];
  /** [window][part] */
  readonly sums: readonly Float64Array[];
}

export interface ScorePositionsOptions {
  readonly runner: CachingRunner;
  readonly windows: EncodedPositions;
  readonly plan?: Plan | undefined;
  readonly attention?: TextAttention | undefined;
  /** Some of `microBatches(windows.task)`. Default: all. */
  readonly batches?: readonly MicroBatch[];
  readonly signal?: AbortSignal | undefined;
  /** Called after each batch with the number of its windows. */
  readonly onSamples?: (count: number) => void;
}

/** Scores windows, batch by batch. */
export async function scorePositions(options: ScorePositionsOptions): Promise<PositionSums> {
  const { windows, plan, attention, signal, onSamples } = options;
  const runner = limitedRunner(options.runner, attention, windows.task);
  const indices: number[] = [];
  const sums: Float64Array[] = [];
  for (const { samples, sequences } of options.batches ?? microBatches(windows.task)) {
    throwIfAborted(signal, "evaluating a text");
    const { targetLogProbs } = await runner.run({
      sequences: sequences.map(({ ids }) => ids),
      positions: sequences.map(({ positions }) => positions),
      targets: sequences.map(({ targets }) => targets),
      ...(plan && { plan }),
      ...(signal && { signal }),
    });
    if (!targetLogProbs) {
      throw new CoppiceError("COPPICE_BACKEND_FAILED", "the backend returned no targetLogProbs");
    }
    let row = 0;
    for (const { positions } of sequences) {
      const window = new Float64Array(windows.parts);
      for (const position of positions) {
        const part = partOf(position, windows);
        window[part] = (window[part] as number) + (targetLogProbs[row++] as number);
      }
      sums.push(window);
    }
    indices.push(...samples);
    onSamples?.(samples.length);
  }
  // Every window has tokens at the same positions.
  const counts = new Array<number>(windows.parts).fill(0);
  for (const position of windows.task.samples[0]?.sequences[0]?.positions ?? []) {
    const part = partOf(position, windows);
    counts[part] = (counts[part] as number) + 1;
  }
  return { length: windows.length, counts, windows: indices, sums };
}

/** The part that holds the token behind `position`. */
function partOf(position: number, { parts, length }: EncodedPositions): number {
  return Math.floor(((position + 1) * parts) / length);
}

/** Puts the sums of several shards of the same windows together. */
export function combinePositions(shards: readonly [PositionSums, ...PositionSums[]]): PositionScores {
  const { length, counts } = shards[0];
  const all: Float64Array[] = [];
  for (const shard of shards) {
    shard.windows.forEach((window, i) => {
      all[window] = shard.sums[i] as Float64Array;
    });
  }
  const perplexity = (means: readonly number[]): Interval => {
    const { value, low, high } = bootstrapMean(means);
    return { value: Math.exp(-value), low: Math.exp(-high), high: Math.exp(-low) };
  };
  const sum = (values: Iterable<number>) => Array.from(values).reduce((total, value) => total + value, 0);
  const positions = counts.map(
    (count, part): PositionScore => ({
      from: Math.ceil((part * length) / counts.length),
      to: Math.ceil(((part + 1) * length) / counts.length),
      tokens: count * all.length,
      ...perplexity(all.map((window) => (window[part] as number) / count)),
    }),
  );
  return {
    length,
    windows: all.length,
    ...perplexity(all.map((window) => sum(window) / sum(counts))),
    positions: positions.filter(({ tokens }) => tokens > 0),
  };
}
