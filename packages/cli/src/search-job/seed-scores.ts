import { existsSync } from "node:fs";
import { join } from "node:path";
import {
  type CollectedStatistics,
  encodeStatistics,
  mergeStatistics,
  scaleStatistics,
} from "@coppice/calibrate";
import { readStatistics } from "@coppice/calibrate/node";
import { CoppiceError, type Criterion, Rng } from "@coppice/core";
import { wantedStatistics } from "../work/wanted-statistics.js";
import type { SearchRun } from "./search-job.js";

const statisticsName = "statistics.safetensors";

/**
 * Scores of every criterion on the search samples. Statistics are collected once per run and kept in its folder; the
 * run's identity vouches for them.
 */
export async function seedScores(run: SearchRun): Promise<Map<string, Float64Array[]>> {
  const { job, emitter, signal } = run;
  const { model, weights } = job.opened.checkpoint;
  const criteria: [name: string, criterion: Criterion][] = [];
  for (const { plugin } of job.criteria)
    criteria.push([plugin.pluginName, await plugin.create({}, undefined)]);
  const needs = criteria.flatMap(([, { needs }]) => (needs.statistics ? [needs] : []));
  const statistics = needs.length > 0 ? await collected(run, needs) : undefined;
  const scores = new Map<string, Float64Array[]>();
  for (const [name, criterion] of criteria) {
    const rows = await criterion.score({
      model,
      weights,
      keep: job.keep,
      ...(job.topK !== undefined && { topK: job.topK }),
      rng: Rng.fromSeed(job.seed),
      emitter,
      signal,
      ...(statistics && { statistics }),
    });
    scores.set(name, rows);
  }
  return scores;
}

async function collected(run: SearchRun, needs: readonly Criterion["needs"][]): Promise<CollectedStatistics> {
  const { job, pool, folder, emitter, signal } = run;
  const path = join(folder.path, statisticsName);
  const { fingerprint } = job.opened.checkpoint.model;
  if (folder.resumed && existsSync(path)) {
    const statistics = await readStatistics(path, { signal });
    if (statistics.model === fingerprint) return statistics;
    throw new CoppiceError(
      "COPPICE_STATS_MODEL",
      `${path} was made from the model ${statistics.model}, this is ${fingerprint}`,
      { hint: "remove the file; it is made again" },
    );
  }
  const parts: CollectedStatistics[] = [];
  for (const { sets } of job.tasks) {
    const part = await pool.collectStatistics({
      task: sets.search,
      chat: job.chat,
      ...wantedStatistics(job.opened.checkpoint.model, needs),
      emitter,
      signal,
    });
    parts.push(part);
  }
  const statistics = weighed(
    parts,
    job.tasks.map(({ weight }) => weight),
  );
  await folder.write(statisticsName, encodeStatistics(statistics));
  return statistics;
}

/** Statistics of all tasks, in which every task counts by its weight, whatever its number of tokens. */
function weighed(parts: readonly CollectedStatistics[], weights: readonly number[]): CollectedStatistics {
  const [first] = parts;
  if (first && parts.length === 1) return first;
  const all = parts.reduce((sum, { tokens }) => sum + tokens, 0);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return parts
    .map((part, i) => scaleStatistics(part, ((weights[i] as number) / total) * (all / part.tokens)))
    .reduce(mergeStatistics);
}
