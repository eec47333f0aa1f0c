import { createHash } from "node:crypto";
import { CoppiceError } from "@coppice/core";
import { checkDisjoint, limitTask, sampleHash, splitTask, type Task } from "@coppice/evaluate";

/** Part of a task that is set aside as holdout when none is given. */
export const holdoutShare = 0.3;
/** Part of the holdout that the final choice among the finalists is made on; the rest is for the report alone. */
export const choiceShare = 1 / 3;
/** The parts of a holdout do not depend on the run's seed, so that runs with different seeds compare. */
const choiceSeed = 0x0c0991ce;

/** The samples of a search, in three parts that share no question. */
export interface SampleSets {
  /** Calibration and fitness. */
  readonly search: Task;
  /** The final choice among the best plans. */
  readonly choice: Task;
  /** Scores that are reported; no decision looks at them. */
  readonly report: Task;
  /** Hashes of what each part says, for the identity of a run. */
  readonly hashes: { readonly search: string; readonly choice: string; readonly report: string };
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
  const search = limitTask(parts.search, limit);
  checkDisjoint(search, parts.holdout);
  const { search: report, holdout: choice } = splitTask(parts.holdout, {
    share: choiceShare,
    seed: choiceSeed,
  });
  const hashes = { search: taskHash(search), choice: taskHash(choice), report: taskHash(report) };
  return { search, choice, report, hashes };
}

/** SHA-256 over the content hashes of all samples, in order. */
function taskHash(task: Task): string {
  const hash = createHash("sha256");
  for (const sample of task.samples) hash.update(sampleHash(sample));
  return hash.digest("hex");
}
