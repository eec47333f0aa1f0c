import { moeLayers, Rng, type SearchStrategy } from "@coppice/core";
import type { SearchJob } from "./search-job.js";

type Scores = ReadonlyMap<string, readonly Float64Array[]>;

/** @param scores of the job's criteria, by their names */
export function createStrategy(job: SearchJob, scores: Scores): Promise<SearchStrategy> {
  return job.strategy.plugin.create(job.options, {
    model: job.opened.checkpoint.model,
    rng: Rng.fromSeed(job.seed),
    evaluations: job.evaluations,
    scores,
  });
}

/**
 * Creates the strategy once without scores, so that options which it refuses leave no run folder behind and cost no
 * statistics.
 * @throws COPPICE_PLUGIN_OPTIONS
 */
export async function checkStrategy(job: SearchJob): Promise<void> {
  const none = () =>
    moeLayers(job.opened.checkpoint.model).map(
      ({ feedForward }) => new Float64Array(feedForward.experts.length),
    );
  await createStrategy(job, new Map(job.criteria.map(({ plugin }) => [plugin.pluginName, none()])));
}
