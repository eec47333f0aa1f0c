import type { Executor } from "@coppice/core";
import { owningExecutor } from "@coppice/evaluate";
import { createModelPool, type ModelPoolOptions } from "./model-pool.js";
import type { ScorerOptions } from "./scorer.js";

export type LocalExecutorOptions = ModelPoolOptions & ScorerOptions;

/**
 * An executor with workers of its own: a model pool that scores plans on one task. Disposing it ends the workers.
 *
 * @example
 * await using executor = await createLocalExecutor({
 *   model: "my-model",
 *   backend: { module: import.meta.resolve("@coppice/backend-cpu") },
 *   task: parseTask(await readFile("task.jsonl", "utf8"), "task.jsonl"),
 *   limit: 200,
 * });
 * const [result] = await executor.evaluate([plan]);
 * @throws what `createModelPool` throws; COPPICE_TASK_TOO_LONG, COPPICE_TASK_METRIC, COPPICE_TOKENIZER
 */
export async function createLocalExecutor(options: LocalExecutorOptions): Promise<Executor> {
  const pool = await createModelPool(options);
  return owningExecutor(pool, () => pool.scorer(options), { endScorer: false });
}
