import { CoppiceError, type Plan, Rng, RunEmitter } from "@coppice/core";
import { calibrationSequences, loadTokenizer, type Task } from "@coppice/evaluate";
import type { CliContext } from "../context.js";
import { openPool, type PoolOptions } from "./model-pool.js";
import type { OpenModel } from "./open-model.js";

/** Lengths of the random sequences: a single token, odd ones, and one that fills batches. */
const randomLengths = [1, 7, 32, 64];
/** Prompts taken from a task, and most tokens of each. */
const taskSequences = 16;
const taskTokens = 256;

export interface VerifyRequest {
  readonly original: OpenModel;
  readonly other: OpenModel;
  /** For the original; absent: as it is. */
  readonly plan: Plan | undefined;
  readonly task: Task | undefined;
  readonly seed: number;
  readonly tolerance: number;
}

export interface Verification {
  readonly maxAbsDiff: number;
  readonly equal: boolean;
  readonly sequences: number;
  readonly positions: number;
  /** Where the largest difference is. */
  readonly at?: { readonly sequence: number; readonly position: number; readonly token: number };
}

/**
 * Compares the logits of every position. One sequence at a time, so that memory holds two rows of logits per token of
 * one sequence.
 * @throws COPPICE_VERIFY_DIFFERENT when the vocabularies differ in size, so that nothing can be compared
 */
export async function verifyModels(
  request: VerifyRequest,
  options: PoolOptions,
  context: CliContext,
): Promise<Verification> {
  const { original, other, plan, tolerance } = request;
  const sizes = [original, other].map(({ checkpoint }) => checkpoint.model.vocabSize);
  if (sizes[0] !== sizes[1]) {
    throw new CoppiceError(
      "COPPICE_VERIFY_DIFFERENT",
      `the vocabularies have ${sizes[0]} and ${sizes[1]} entries`,
    );
  }
  const sequences = await testSequences(request);
  const emitter = new RunEmitter();
  context.out.follow(emitter);
  await using first = await openPool(original, { ...options, workers: 1 }, context);
  await using second = await openPool(other, { ...options, workers: 1 }, context);
  const { signal } = context;
  let maxAbsDiff = 0;
  let positions = 0;
  let at: Verification["at"];
  for (const [sequence, ids] of sequences.entries()) {
    const [expected, actual] = await Promise.all([
      first.logits([ids], { all: true, signal, ...(plan && { plan }) }),
      second.logits([ids], { all: true, signal }),
    ]);
    expected[0]?.forEach((row, position) => {
      positions++;
      const got = actual[0]?.[position];
      row.forEach((value, token) => {
        const difference = Math.abs(value - (got?.[token] ?? Number.NaN));
        // NaN compares as false everywhere; it must not pass as equal.
        if (difference <= maxAbsDiff) return;
        maxAbsDiff = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
        at = { sequence, position, token };
      });
    });
    emitter.notify("progress", {
      stage: "verifying",
      done: sequence + 1,
      total: sequences.length,
      unit: "sequences",
      note: `largest difference ${maxAbsDiff.toExponential(1)}`,
    });
  }
  const equal = maxAbsDiff <= tolerance;
  return { maxAbsDiff, equal, sequences: sequences.length, positions, ...(at && { at }) };
}

async function testSequences({ original, task, seed }: VerifyRequest): Promise<Int32Array[]> {
  const { model, folder } = original.checkpoint;
  const rng = Rng.fromSeed(seed);
  const random = randomLengths.map((length) =>
    Int32Array.from({ length: Math.min(length, model.contextLength) }, () => rng.integer(model.vocabSize)),
  );
  if (!task) return random;
  const tokenizer = await loadTokenizer(folder);
  const prompts = calibrationSequences(task, { tokenizer, model, limit: taskSequences });
  return [...random, ...prompts.map((ids) => ids.slice(0, taskTokens))];
}
