import { type Plan, planKey } from "@coppice/core";
import { bootstrapMean, type Metric, type PairedDifference, pairedBootstrap } from "@coppice/evaluate";
import type { JobTask, Measurement, SearchRun } from "./search-job.js";

/** Which samples were measured; the name is in the journal. */
export type Scope = "search" | "report";

/**
 * Measures plans by the metric that users see, each plan and set once for the life of a run: results are kept in its
 * journal beside those of the search.
 */
export class Measurer {
  readonly #run: SearchRun;
  readonly #known = new Map<string, Measurement>();
  #done = 0;
  readonly #total: number;

  /** @param total measurements that are expected, for the progress display */
  constructor(run: SearchRun, total: number) {
    this.#run = run;
    this.#total = total;
    for (const record of run.folder.journal.records) {
      if (record.type !== "measured") continue;
      const { id, ...measurement } = record as unknown as Measurement & { id: string };
      this.#known.set(id, measurement);
    }
  }

  /** @param plan absent: the model as it is */
  async measure({ name, sets, metric }: JobTask, scope: Scope, plan?: Plan): Promise<Measurement> {
    const { job, pool, folder, emitter, signal } = this.#run;
    const { chat, opened, tasks } = job;
    const { model } = opened.checkpoint;
    const where = tasks.length === 1 ? scope : `${name} ${scope}`;
    const id = `${where} ${metric} ${plan ? planKey(plan, model) : "full"}`;
    let measurement = this.#known.get(id);
    if (!measurement) {
      const { value, low, high, samples, scores } = await pool.evaluateTask({
        task: sets[scope],
        signal,
        metric,
        chat,
        ...(plan && { plan }),
      });
      measurement = { metric, value, low, high, samples, scores: Array.from(scores) };
      this.#known.set(id, measurement);
      await folder.journal.append([{ type: "measured", id, ...measurement }]);
    }
    this.#done++;
    emitter.notify("progress", {
      stage: "measuring",
      done: this.#done,
      total: Math.max(this.#done, this.#total),
      unit: "scores",
    });
    return measurement;
  }
}

/** True when the value of a metric is the mean of its per-sample scores. */
function isMean(metric: Metric): boolean {
  return metric !== "perplexity";
}

/** By how much `other` is above `one`, paired on the same samples; undefined for metrics that are no mean. */
export function differenceTo(one: Measurement, other: Measurement): PairedDifference | undefined {
  return isMean(one.metric) ? pairedBootstrap(other.scores, one.scores) : undefined;
}

/**
 * The mean over several draws. Its interval is that of the mean over samples of the draws' mean score; for perplexity,
 * which is no such mean, the mean of the draws' intervals.
 */
export function meanMeasurement(draws: readonly Measurement[]): Measurement {
  const first = draws[0] as Measurement;
  const average = (values: readonly number[]) =>
    values.reduce((sum, value) => sum + value, 0) / values.length;
  const scores = first.scores.map((_, i) => average(draws.map((draw) => draw.scores[i] as number)));
  const interval = isMean(first.metric)
    ? bootstrapMean(scores)
    : {
        value: average(draws.map(({ value }) => value)),
        low: average(draws.map(({ low }) => low)),
        high: average(draws.map(({ high }) => high)),
      };
  return { metric: first.metric, samples: first.samples, scores, ...interval };
}
