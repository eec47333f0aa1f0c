import type { AttentionPlan, Plan, RunAttention, Runner } from "@coppice/core";
import { allLogits, randomSequences } from "./backend-subject.js";
import { expectClose, expectCode, expectEqual } from "./compare.js";
import type { MemoryModel } from "./memory-model.js";
import { slowForward } from "./slow-model.js";
import { slowSight } from "./slow-spans.js";

const tolerance = 1e-4;
/** Shorter than the sinks, than every span, than some, and longer than all. */
export const attentionLengths = [2, 9, 24, 41];
/** Tokens per sequence and run: a prompt, then several tokens at once and one at a time, which wrap short rings. */
const pieces = [
  [1, 5, 12, 20],
  [1, 1, 1, 7],
  [0, 1, 6, 1],
  [0, 2, 5, 13],
];
/** Logits at every position of one text, by the formula. */
export function logitsOf(
  loaded: MemoryModel,
  ids: Int32Array,
  plan: AttentionPlan,
  length: number,
  experts?: Plan,
  parts?: readonly number[],
): number[] {
  return slowForward(loaded, [...ids], experts, parts, slowSight(plan, length)).logits.flat();
}

export async function checkRun(
  runner: Runner,
  loaded: MemoryModel,
  sequences: readonly Int32Array[],
  attention: RunAttention & { readonly plan: AttentionPlan },
  experts?: Plan,
): Promise<void> {
  const logits = await allLogits(runner, sequences, experts, { attention });
  const expected = sequences.flatMap((ids, s) =>
    logitsOf(loaded, ids, attention.plan, attention.lengths?.[s] ?? ids.length, experts),
  );
  expectClose(
    logits,
    expected,
    tolerance,
    `logits of texts of ${sequences.map(({ length }) => length).join()}`,
  );
}

/**
 * Feeds a cache per batch of sequences piece by piece, until the shortest of them ends; default: all of them, and all but the
 * shortest.
 */
export async function checkPieces(
  runner: Runner,
  loaded: MemoryModel,
  attention: RunAttention & { readonly plan: AttentionPlan },
  {
    experts,
    batches = [
      [0, 1, 2, 3],
      [1, 2, 3],
    ],
  }: { experts?: Plan; batches?: number[][] } = {},
): Promise<void> {
  const { model } = loaded;
  const sequences = randomSequences(model, attentionLengths);
  for (const batch of batches) {
    const runs = pieces.filter((piece) => batch.every((s) => (piece[s] as number) > 0));
    const given = attention.lengths && batch.map((s) => attention.lengths?.[s] as number);
    const cache = runner.createCache(batch.length, {
      plan: attention.plan,
      ...(given && { lengths: given }),
    });
    const expected = batch.map((s) => {
      const parts = runs.map((piece) => piece[s] as number);
      const ids = (sequences[s] as Int32Array).subarray(
        0,
        parts.reduce((sum, part) => sum + part),
      );
      return logitsOf(
        loaded,
        ids,
        attention.plan,
        attention.lengths?.[s] ?? model.contextLength,
        experts,
        parts,
      );
    });
    for (const piece of runs) {
      const starts = [...cache.lengths];
      const part = batch.map((s, i) => {
        const start = starts[i] as number;
        return (sequences[s] as Int32Array).subarray(start, start + (piece[s] as number));
      });
      const logits = await allLogits(runner, part, experts, { cache });
      const wanted = part.flatMap((tokens, i) => {
        const start = (starts[i] as number) * model.vocabSize;
        return (expected[i] as number[]).slice(start, start + tokens.length * model.vocabSize);
      });
      expectClose(logits, wanted, tolerance, `logits with a cache that grew to ${cache.lengths.join(", ")}`);
    }
    cache.dispose();
  }
}

/** Prompts in one run, then one token of every sequence at a time. */
export async function checkSteps(
  runner: Runner,
  loaded: MemoryModel,
  plan: AttentionPlan,
  prompts: readonly number[],
  steps: number,
): Promise<void> {
  const vocab = loaded.model.vocabSize;
  const ends = prompts.map((prompt) => prompt + steps);
  const sequences = randomSequences(loaded.model, ends);
  const expected = sequences.map((ids, s) => logitsOf(loaded, ids, plan, ends[s] as number));
  const cache = runner.createCache(prompts.length, { plan, lengths: ends });
  for (let step = 0; step <= steps; step++) {
    const starts = prompts.map((prompt) => (step === 0 ? 0 : prompt + step - 1));
    const part = sequences.map((ids, s) => ids.subarray(starts[s], (prompts[s] as number) + step));
    const logits = await allLogits(runner, part, undefined, { cache });
    const wanted = part.flatMap((tokens, s) => {
      const start = (starts[s] as number) * vocab;
      return (expected[s] as number[]).slice(start, start + tokens.length * vocab);
    });
    expectClose(logits, wanted, tolerance, `logits of step ${step}`);
  }
  expectEqual(cache.lengths, ends, "cache lengths at the end");
  cache.dispose();
}

/** Fails unless a run and a cache with this attention are refused with this code. */
export async function refuses(
  runner: Runner,
  attention: RunAttention,
  code: Parameters<typeof expectCode>[1][number],
): Promise<void> {
  const sequences = randomSequences(runner.model, [5, 6]);
  await expectCode(() => runner.run({ sequences, attention }), [code], "a run");
  await expectCode(async () => runner.createCache(2, attention), [code], "a cache");
}

/** What a backend that does not know this kind of limit must do. */
export function refusesAttention(runner: Runner, attention: RunAttention): Promise<void> {
  return refuses(runner, attention, "COPPICE_BACKEND_UNSUPPORTED");
}
