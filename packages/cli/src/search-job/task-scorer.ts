import { CoppiceError, type Executor } from "@coppice/core";
import { leastScore, sampleSet } from "@coppice/evaluate";
import { type CombinedTask, combineExecutors } from "@coppice/search";
import { rememberingExecutor } from "@coppice/search/node";
import { engineOf } from "../work/work-pool.js";
import type { JobTask, SearchRun } from "./search-job.js";

/** Memory for reused activations in every worker, of all tasks together; as much as one task has by default. */
const cacheBytes = 256 * 1024 * 1024;

/** The executor of a search: of its one task, or of all tasks together. */
export async function openScorer(run: SearchRun, set: "search" | "choice"): Promise<Executor> {
  const { tasks } = run.job;
  const [task] = tasks;
  return tasks.length === 1 && task ? taskScorer(run, task, set) : openCombined(run, set);
}

/** The executor of one task alone; scores that other runs found come from the cache, where there is one. */
export async function taskScorer(
  { job, pool, signal, cache, emitter }: SearchRun,
  { name, sets, objective }: JobTask,
  set: "search" | "choice" | "report",
): Promise<Executor> {
  const { chat, tasks, opened, attention, backend, backendOptions } = job;
  const { model } = opened.checkpoint;
  const task = sets[set];
  if (!task) throw new CoppiceError("COPPICE_INTERNAL", `the task ${name} has no ${set} samples`);
  const share = (cacheBytes * (pool.workers ?? 1)) / tasks.length;
  const executor = await pool.scorer({
    task,
    objective,
    chat,
    signal,
    ...(tasks.length > 1 && { prefixCacheBytes: share }),
  });
  if (!cache) return executor;
  const { folder, numerics } = cache;
  try {
    return await rememberingExecutor({
      executor,
      model,
      folder,
      identity: {
        model: model.fingerprint,
        samples: sampleSet(task).hash,
        chat,
        objective,
        engine: engineOf(backend, backendOptions, attention),
        numerics,
      },
      ...(task.form !== "text" && { samples: task.samples.length }),
      emitter,
    });
  } catch (error) {
    await executor.dispose();
    throw error;
  }
}

async function openCombined(run: SearchRun, set: "search" | "choice"): Promise<Executor> {
  const opened: CombinedTask[] = [];
  try {
    for (const task of run.job.tasks) {
      const { name, weight, minimum, objective, sets } = task;
      const executor = await taskScorer(run, task, set);
      const { form, samples } = sets[set] ?? sets.search;
      opened.push({
        name,
        executor,
        weight,
        least: leastScore(objective, form),
        ...(minimum !== undefined && { minimum }),
        // Texts are cut into windows, and only the workers know into how many.
        ...(form !== "text" && { samples: samples.length }),
      });
    }
    return combineExecutors(opened);
  } catch (error) {
    await Promise.all(opened.map(({ executor }) => executor.dispose()));
    throw error;
  }
}
