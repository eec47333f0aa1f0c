import { ContextSamples } from "@coppice/attention";
import { type AttentionSample, type MoeModel, Rng } from "@coppice/core";
import { calibrationSequences, encodeTask, loadTokenizer, type Task } from "@coppice/evaluate";
import type { CliContext } from "../context.js";
import type { OpenModel } from "./open-model.js";
import { readTask } from "./task-file.js";

export interface AttentionTexts {
  readonly samples: readonly AttentionSample[];
  readonly validation: readonly AttentionSample[];
}

export interface TextOptions {
  /** Task files or texts; of each as many contexts are made. */
  readonly data: readonly string[];
  readonly lengths: readonly number[];
  /**
   * Lengths at which plans are compared; default: three quarters of the shortest of `lengths`, where a sample fits that, and of
   * the longest.
   */
  readonly validationLengths?: readonly number[];
  /** Contexts of each length from each file. */
  readonly samples: number;
  readonly limit?: number;
  readonly chat?: boolean;
  readonly seed: number;
}

/** Contexts to profile and others to validate on, made from the samples of files. */
export async function attentionTexts(
  { checkpoint: { model, folder } }: OpenModel,
  options: TextOptions,
  context: CliContext,
): Promise<AttentionTexts> {
  const { lengths, samples: count, limit, chat = false, seed } = options;
  const tokenizer = await loadTokenizer(folder);
  const common = { tokenizer, model, chat, ...(limit !== undefined && { limit }) };
  const sources: ((length: number) => ContextSamples)[] = [];
  for (const [i, path] of options.data.entries()) {
    const task = await readTask(path, context);
    const made = (length: number): ContextSamples => {
      const rng = Rng.fromSeed(1000 * seed + i);
      return new ContextSamples(encoded(task, { ...common, window: length }, model), rng, model.endTokens[0]);
    };
    const pools = new Map<number, ContextSamples>();
    sources.push((length) => {
      // Windows of a text are of the length that is wanted; samples of tasks are the same for all lengths.
      const key = task.form === "text" ? length : model.contextLength;
      const pool = pools.get(key) ?? made(key);
      pools.set(key, pool);
      return pool;
    });
  }
  const fitting = (length: number) =>
    sources.map((source) => source(length)).filter(({ shortest }) => shortest <= length);
  const take = (length: number, count: number): AttentionSample[] => {
    const pools = fitting(length);
    // Where nothing fits, the first says so.
    return (pools.length > 0 ? pools : sources.slice(0, 1).map((source) => source(length))).flatMap((pool) =>
      pool.take(length, count),
    );
  };
  const samples = lengths.flatMap((length) => take(length, count));
  const part = (length: number | undefined) => Math.floor(((length as number) * 3) / 4);
  const short = part(lengths[0]);
  const usual = lengths.length > 1 && fitting(short).length > 0 ? [short] : [];
  const { validationLengths = [...usual, part(lengths.at(-1))] } = options;
  // Every plan that is compared runs all of these.
  const validation = validationLengths.flatMap((length) => take(length, Math.ceil(count / 2)));
  return { samples, validation };
}

/** Prompts with their answers; windows of texts. */
function encoded(
  task: Task,
  options: Parameters<typeof encodeTask>[1] & Parameters<typeof calibrationSequences>[1],
  model: MoeModel,
): AttentionSample[] {
  const sequences = calibrationSequences(task, options);
  if (task.form === "text") return sequences.map((tokens) => ({ tokens, responseFrom: 0 }));
  const { samples } = encodeTask(task, options);
  return sequences
    .map((tokens, i) => ({ tokens, responseFrom: samples[i]?.promptTokens ?? 0 }))
    .filter(
      ({ tokens, responseFrom }) => responseFrom < tokens.length && tokens.length <= model.contextLength,
    );
}
