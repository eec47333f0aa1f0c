import { createHash } from "node:crypto";
import { CoppiceError } from "@coppice/core";
import {
  checkDisjoint,
  limitTask,
  sampleHash,
  splitTask,
  type Task,
  withoutQuestionsOf,
} from "@coppice/evaluate";

/** Part of a task that is set aside as holdout when none is given. */
export const holdoutShare = 0.3;

/** The samples of a search, in parts that share no question. */
export interface SampleSets {
  /** Calibration and fitness. */
  readonly search: Task;
  /**
   * The choice among the best plans: what `limit` leaves of the task, at most as many samples as `search`; absent where it
   * leaves nothing.
   */
  readonly choice?: Task;
  /** The whole holdout. Only the plan that was chosen, and what it is compared with, are ever run on it. */
  readonly report: Task;
  /** Hashes of what each part says, for the identity of a run. */
  readonly hashes: { readonly search: string; readonly choice?: string; readonly report: string };
}

export interface SampleSetOptions {
  readonly task: Task;
  /** A holdout file; absent: a part of `task` is set aside. */
  readonly holdout?: Task | undefined;
  /** Search on the first samples only. */
  readonly limit?: number | undefined;
  readonly seed: number;
}

/** @throws COPPICE_TASK_OVERLAP, COPPICE_TASK_EMPTY, COPPICE_TASK_METRIC when the two files differ in form */
export function sampleSets({ task, holdout, limit, seed }: SampleSetOptions): SampleSets {
  if (holdout && holdout.form !== task.form) {
    throw new CoppiceError(
      "COPPICE_TASK_METRIC",
      `${task.name} is of the form "${task.form}" and ${holdout.name} of the form "${holdout.form}"; expected one form`,
    );
  }
  const parts = holdout ? { search: task, holdout } : splitTask(task, { share: holdoutShare, seed });
  const report = parts.holdout;
  const search = limitTask(parts.search, limit);
  checkDisjoint(search, report);
  const choice = limitTask(withoutQuestionsOf(parts.search, [search, report]), search.samples.length);
  const hashes = { search: taskHash(search), report: taskHash(report) };
  if (choice.samples.length === 0) return { search, report, hashes };
  return { search, choice, report, hashes: { ...hashes, choice: taskHash(choice) } };
}

/** SHA-256 over the content hashes of all samples, in order. */
function taskHash(task: Task): string {
  const hash = createHash("sha256");
  for (const sample of task.samples) hash.update(sampleHash(sample));
  return hash.digest("hex");
}
