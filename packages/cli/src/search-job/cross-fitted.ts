import type { Plan } from "@coppice/core";
import { combineScores, type TaskScore } from "@coppice/evaluate";
import { halfOf, halves, ofHalf, otherHalf } from "./judge.js";
import type { SearchRun } from "./search-job.js";

/** The task's metric on the search samples, each half of them under projections that were fitted to the other half. */
export type CrossFitted = Pick<TaskScore, "value" | "low" | "high" | "samples">;

/**
 * Scores of the search samples under fits that have not seen them: what the search score of the result would be, had its
 * projections been fitted to other samples, and half as many. Which experts are kept, and how layers are fitted, still
 * went by all of them.
 * @param plans what the halves were fitted to, in the order of `halves`
 */
export async function crossFittedScore(
  { job, pool, signal }: SearchRun,
  plans: readonly Plan[],
): Promise<CrossFitted | undefined> {
  const [task] = job.tasks;
  // Halves of one text are no texts, and perplexity is no mean of samples.
  if (!task || task.sets.search.form === "text" || plans.length !== halves.length) return undefined;
  const { metric, sets } = task;
  const count = sets.search.samples.length;
  const places = Array.from({ length: count }, (_, i) => i);
  const shards = [];
  for (const [i, half] of halves.entries()) {
    const judging = otherHalf(half);
    const scored = { task: halfOf(task, judging).sets.search, metric, chat: job.chat, signal };
    const { scores } = await pool.evaluateTask({ ...scored, plan: plans[i] as Plan });
    shards.push({ samples: ofHalf(places, judging), scores: [...scores], tokens: [...scores].fill(1) });
  }
  const { value, low, high, samples } = combineScores(metric, count, shards);
  return { value, low, high, samples };
}
