import type { Plan, Runner } from "@coppice/core";
import { type EncodedTask, withEndToken } from "./encode-task.js";

/** Samples and tokens looked at; more would not change a majority that is clear, as ends of answers are. */
const observedSamples = 32;
const observedTokens = 2_048;

/**
 * Finds out how a model ends its answers: most models write end-of-text, but a base model that continues a list of
 * examples writes a newline, and the probability of end-of-text then says nothing about it. Runs the first samples
 * with their answers given and counts the most likely tokens after them; the ending token seen most often becomes
 * the one whose probability counts in likelihoods. A task without answers, and a model that never ends one, keep
 * their first end-of-text token.
 * @returns the task, with `endToken` chosen
 */
export async function observeEndToken(
  runner: Runner,
  task: EncodedTask,
  options: { plan?: Plan; signal?: AbortSignal | undefined } = {},
): Promise<EncodedTask> {
  if (task.form !== "generation" || task.ending.size < 2) return task;
  const { plan, signal } = options;
  const sequences: Int32Array[] = [];
  let tokens = 0;
  for (const sample of task.samples.slice(0, observedSamples)) {
    for (const { ids } of sample.sequences) {
      tokens += ids.length;
      if (sequences.length === 0 || tokens <= observedTokens) sequences.push(ids);
    }
  }
  const { argmax = [] } = await runner.run({
    sequences,
    positions: sequences.map((ids) => Int32Array.of(ids.length - 1)),
    targets: sequences.map(() => Int32Array.of(task.endToken)),
    ...(plan && { plan }),
    ...(signal && { signal }),
  });
  const counts = new Map<number, number>();
  for (const token of argmax) counts.set(token, (counts.get(token) ?? 0) + 1);
  let best = task.endToken;
  // Ties go to the token that comes first in `ending`: end-of-text before line breaks.
  for (const token of task.ending) {
    if ((counts.get(token) ?? 0) > (counts.get(best) ?? 0)) best = token;
  }
  return withEndToken(task, best);
}
