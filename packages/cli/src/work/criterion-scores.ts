import type { CollectedStatistics } from "@coppice/calibrate";
import { readStatistics } from "@coppice/calibrate/node";
import {
  CoppiceError,
  type Criterion,
  checkCollected,
  Rng,
  RunEmitter,
  type Statistics,
  unusedExperts,
} from "@coppice/core";
import type { CliContext } from "../context.js";
import { loadPlugin } from "../plugins/find-plugin.js";
import { warnUnused } from "../terminal/unused-experts.js";
import { openPool, type PoolOptions } from "./model-pool.js";
import type { OpenModel } from "./open-model.js";
import { readTask } from "./task-file.js";
import { wantedStatistics } from "./wanted-statistics.js";

/** Where statistics come from, and what runs the model if they are to be collected. */
export interface StatisticsOptions extends PoolOptions {
  readonly stats?: string;
  readonly data?: string;
  readonly limit?: number;
}

/** Options that `score` and `prune` share. */
export interface CriterionOptions extends StatisticsOptions {
  readonly criterion: string;
  /** Experts that every layer is to keep. */
  readonly keep?: number;
  readonly set?: Readonly<Record<string, unknown>>;
  readonly seed: number;
}

/** Scores every expert; a backend is only loaded when the criterion needs statistics that are not there yet. */
export async function criterionScores(
  opened: OpenModel,
  options: CriterionOptions,
  context: CliContext,
): Promise<Float64Array[]> {
  const criterion = await openCriterion(options.criterion, options.set, context);
  const statistics = criterion.needs.statistics
    ? await findStatistics(opened, [{ name: options.criterion, needs: criterion.needs }], options, context)
    : undefined;
  if (statistics) warnUnused(unusedExperts(statistics), context);
  return scoreBy({ name: options.criterion, criterion }, opened, { ...options, statistics }, context);
}

export async function openCriterion(
  name: string,
  settings: Readonly<Record<string, unknown>> | undefined,
  context: CliContext,
): Promise<Criterion> {
  const { plugin } = await loadPlugin("criterion", name, context.io.cwd);
  return plugin.create(settings ?? {}, undefined);
}

export interface NamedCriterion {
  readonly name: string;
  readonly criterion: Criterion;
}

/** What a criterion gets to know beside the model. */
export interface ScoreOptions extends Pick<CriterionOptions, "keep" | "seed"> {
  readonly statistics: Statistics | undefined;
}

/** Scores by a criterion that is open, with the statistics that it needs. */
export async function scoreBy(
  { name, criterion }: NamedCriterion,
  opened: OpenModel,
  { seed, keep, statistics }: ScoreOptions,
  context: CliContext,
): Promise<Float64Array[]> {
  if (criterion.needs.weights) context.out.note(`Reading weights to score experts by ${name}.`);
  const emitter = new RunEmitter();
  context.out.follow(emitter);
  const scores = await criterion.score({
    model: opened.checkpoint.model,
    weights: opened.checkpoint.weights,
    rng: Rng.fromSeed(seed),
    emitter,
    signal: context.signal,
    ...(keep !== undefined && { keep }),
    ...(statistics && { statistics }),
  });
  context.out.settle();
  return scores;
}

/** A criterion or merger, and what it reads. */
export interface Reader {
  readonly name: string;
  readonly needs: Criterion["needs"];
}

/**
 * Reads the statistics that the user named, or collects them.
 * @param readers those that need them
 */
export async function findStatistics(
  opened: OpenModel,
  readers: readonly Reader[],
  options: StatisticsOptions,
  context: CliContext,
): Promise<CollectedStatistics> {
  const { stats, data, limit } = options;
  if (stats !== undefined && data === undefined) {
    const found = await readStatistics(context.path(stats), { signal: context.signal });
    for (const { name, needs } of readers) checkCollected(found, needs, name);
    return found;
  }
  if (data === undefined || stats !== undefined) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `${readers[0]?.name} needs statistics: give either --stats or --data`,
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
    ...wantedStatistics(
      opened.checkpoint.model,
      readers.map(({ needs }) => needs),
    ),
    ...(limit !== undefined && { limit }),
  });
  context.out.settle();
  return statistics;
}
