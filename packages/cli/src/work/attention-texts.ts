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
  readonly validationLength: number;
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
  const { lengths, validationLength, samples: count, limit, chat = false, seed } = options;
  const tokenizer = await loadTokenizer(folder);
  const common = { tokenizer, model, chat, ...(limit !== undefined && { limit }) };
  const sources: ((length: number) => ContextSamples)[] = [];
  for (const [i, path] of options.data.entries()) {
    const task = await readTask(path, context);
    const made = (length: number): ContextSamples => {
      const rng = Rng.fromSeed(1000 * seed + i);
      return new ContextSamples(encoded(task, { ...common, window: length }, model), rng, model.endTokens[0]);
    };
    // Windows of a text are of the length that is wanted; samples of tasks are the same for all lengths.
    const pool = task.form === "text" ? undefined : made(model.contextLength);
    sources.push((length) => pool ?? made(length));
  }
  const take = (length: number): AttentionSample[] => {
    const pools = sources.map((source) => source(length));
    const fitting = pools.filter(({ shortest }) => shortest <= length);
    // Where nothing fits, the first says so.
    return (fitting.length > 0 ? fitting : pools.slice(0, 1)).flatMap((pool) => pool.take(length, count));
  };
  const samples = lengths.flatMap(take);
  return { samples, validation: take(validationLength) };
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
