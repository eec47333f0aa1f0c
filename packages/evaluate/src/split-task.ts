import { CoppiceError, Rng } from "@coppice/core";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import type { Sample, Task } from "./task.js";

/** Content hash of a sample, 32 hex digits: equal exactly for samples that say the same, whatever their line. */
export function sampleHash(sample: Sample): string {
  if ("text" in sample) return hash(["text", sample.text]);
  if ("choices" in sample) return hash(["choices", sample.prompt, sample.choices, sample.answer]);
  return hash(["generation", sample.prompt, sample.answer.trimEnd()]);
}

/** Content hash of what the model is shown; a sample with the same question leaks whatever its answer is. */
function questionHash(sample: Sample): string {
  return hash("text" in sample ? sample.text.trim() : sample.prompt.trim());
}

export interface TaskSplit<T extends Task> {
  readonly search: T;
  readonly holdout: T;
}

/**
 * Sets a part of a task aside. Samples with the same question stay on one side; each side keeps file order.
 * @param options.share part of the samples that becomes the holdout, in (0, 1)
 * @throws COPPICE_TASK_EMPTY when a side would be left without samples
 */
export function splitTask<T extends Task>(task: T, options: { share: number; seed: number }): TaskSplit<T> {
  const { share, seed } = options;
  if (!(share > 0 && share < 1)) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `the holdout share is ${share}, expected more than 0 and less than 1`,
    );
  }
  const groups = new Map<string, number[]>();
  task.samples.forEach((sample, i) => {
    const key = questionHash(sample);
    const group = groups.get(key);
    if (group) group.push(i);
    else groups.set(key, [i]);
  });
  const wanted = Math.max(1, Math.round(share * task.samples.length));
  const holdout = new Set<number>();
  for (const group of Rng.fromSeed(seed).shuffle([...groups.values()])) {
    if (holdout.size >= wanted) break;
    if (holdout.size + group.length === task.samples.length) break;
    for (const i of group) holdout.add(i);
  }
  if (holdout.size === 0) {
    throw new CoppiceError(
      "COPPICE_TASK_EMPTY",
      `${task.name} has ${task.samples.length} samples of ${groups.size} different questions; a split needs at least 2`,
      { hint: "give a holdout file of its own" },
    );
  }
  const part = (inside: boolean) =>
    ({ ...task, samples: (task.samples as Sample[]).filter((_, i) => holdout.has(i) === inside) }) as T;
  return { search: part(false), holdout: part(true) };
}

/** Samples whose question is asked by none of the other tasks. */
export function withoutQuestionsOf<T extends Task>(task: T, others: readonly Task[]): T {
  const asked = new Set(others.flatMap(({ samples }) => samples.map(questionHash)));
  return {
    ...task,
    samples: (task.samples as Sample[]).filter((sample) => !asked.has(questionHash(sample))),
  } as T;
}

/**
 * Refuses a holdout that shares questions with the search samples: its score would say nothing about unseen ones.
 * @throws COPPICE_TASK_OVERLAP with the number of shared samples and the lines of the first
 */
export function checkDisjoint(search: Task, holdout: Task): void {
  const lines = new Map(search.samples.map((sample) => [questionHash(sample), sample.line]));
  let shared = 0;
  let example: { search: number; holdout: number } | undefined;
  for (const sample of holdout.samples) {
    const line = lines.get(questionHash(sample));
    if (line === undefined) continue;
    shared++;
    example ??= { search: line, holdout: sample.line };
  }
  if (!example) return;
  throw new CoppiceError(
    "COPPICE_TASK_OVERLAP",
    `${shared} of the ${holdout.samples.length} holdout samples of ${holdout.name} also occur among the ` +
      `${search.samples.length} search samples of ${search.name}: line ${example.holdout} asks the same as ` +
      `line ${example.search} there; expected none`,
    {
      hint: "remove the shared samples from one of the files, or let the tool set a holdout aside",
      details: { shared, holdout: holdout.samples.length, search: search.samples.length, example },
    },
  );
}

function hash(content: unknown): string {
  return bytesToHex(sha256(utf8ToBytes(JSON.stringify(content)))).slice(0, 32);
}
