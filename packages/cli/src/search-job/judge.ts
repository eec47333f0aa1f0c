import type { Plan, WorkCounters } from "@coppice/core";
import { type Evaluation, PlanEvaluator } from "@coppice/search";
import type { JobTask, SearchRun } from "./search-job.js";
import { openScorer } from "./task-scorer.js";

/** Every second sample of a task. */
export type Half = "even" | "odd";
export const halves: readonly Half[] = ["even", "odd"];

export function otherHalf(half: Half): Half {
  return half === "even" ? "odd" : "even";
}

/** Scores plans on search samples, and finds the scores in the journal that an earlier process left there. */
export interface Judge extends AsyncDisposable {
  evaluate(plans: readonly Plan[]): Promise<readonly Evaluation[]>;
  work(): WorkCounters;
}

/** @param half of the samples of every task; absent: all */
export async function openJudge(run: SearchRun, half?: Half): Promise<Judge> {
  const { job, folder, signal } = run;
  const tasks = half ? job.tasks.map((task) => halfOf(task, half)) : job.tasks;
  const executor = await openScorer({ ...run, job: { ...job, tasks } }, "search");
  const evaluator = new PlanEvaluator({
    model: job.opened.checkpoint.model,
    executor,
    journal: folder.journal,
    scope: half ? `search, ${half} samples` : "search",
  });
  return {
    evaluate: (plans) =>
      evaluator.evaluate(
        plans.map((plan) => ({ plan, phase: "reconstruct", origin: "fit" })),
        { signal },
      ),
    work: () => executor.work(),
    [Symbol.asyncDispose]: () => executor.dispose(),
  };
}

/** The task with one half of its search samples. */
export function halfOf(task: JobTask, half: Half): JobTask {
  const { search } = task.sets;
  const samples = ofHalf(search.samples as readonly unknown[], half);
  return { ...task, sets: { ...task.sets, search: { ...search, samples } as typeof search } };
}

/** The values of a half, in order. */
export function ofHalf<T>(values: readonly T[], half: Half): T[] {
  return values.filter((_, i) => (i % 2 === 0) === (half === "even"));
}
