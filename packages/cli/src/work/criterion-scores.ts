import { readStatistics } from "@coppice/calibrate/node";
import { CoppiceError, Rng, RunEmitter, type Statistics } from "@coppice/core";
import type { CliContext } from "../context.js";
import { loadPlugin } from "../plugins/find-plugin.js";
import { openPool, type PoolOptions } from "./model-pool.js";
import type { OpenModel } from "./open-model.js";
import { readTask } from "./task-file.js";

/** Options that `score` and `prune` share. */
export interface CriterionOptions extends PoolOptions {
  readonly criterion: string;
  readonly stats?: string;
  readonly data?: string;
  readonly limit?: number;
  readonly set?: Readonly<Record<string, unknown>>;
  readonly seed: number;
}

/** Scores every expert; a backend is only loaded when the criterion needs statistics that are not there yet. */
export async function criterionScores(
  opened: OpenModel,
  options: CriterionOptions,
  context: CliContext,
): Promise<Float64Array[]> {
  const { plugin } = await loadPlugin("criterion", options.criterion, context.io.cwd);
  const criterion = await plugin.create(options.set ?? {}, undefined);
  const statistics = criterion.needs.statistics ? await findStatistics(opened, options, context) : undefined;
  if (criterion.needs.weights) {
    context.out.note(`Reading the weights of all experts to score them by ${options.criterion}.`);
  }
  return criterion.score({
    model: opened.checkpoint.model,
    weights: opened.checkpoint.weights,
    rng: Rng.fromSeed(options.seed),
    signal: context.signal,
    ...(statistics && { statistics }),
  });
}

async function findStatistics(
  opened: OpenModel,
  options: CriterionOptions,
  context: CliContext,
): Promise<Statistics> {
  const { stats, data, limit } = options;
  if (stats !== undefined && data === undefined) {
    return readStatistics(context.path(stats), { signal: context.signal });
  }
  if (data === undefined || stats !== undefined) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `the criterion ${options.criterion} needs statistics: give either --stats or --data`,
      { hint: "--stats takes a file of `coppice calibrate`, --data a task file or text" },
    );
  }
  const task = await readTask(data, context);
  const emitter = new RunEmitter();
  context.out.follow(emitter);
  await using pool = await openPool(opened, options, context);
  const statistics = await pool.collectStatistics({
    task,
    emitter,
    signal: context.signal,
    ...(limit !== undefined && { limit }),
  });
  context.out.settle();
  return statistics;
}
