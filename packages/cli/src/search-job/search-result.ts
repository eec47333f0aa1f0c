import { modelSize } from "@coppice/core";
import { formatDifference, formatScore } from "@coppice/report";
import { formatInterval, formatTable } from "../terminal/format.js";
import type { JobResult } from "./run-job.js";
import { type Measurement, type ResultRow, runIdentity, type SearchJob } from "./search-job.js";

/** Contents of result.json, which is also what `--json` prints. */
export function searchResult(job: SearchJob, result: JobResult, seconds: number) {
  const { model } = job.opened.checkpoint;
  const { search, chosen, rows } = result;
  const row = (role: ResultRow["role"]) => rows.find((entry) => entry.role === role) as ResultRow;
  const best = row("chosen");
  const full = row("full");
  return {
    format: "coppice.result",
    version: 1,
    metric: job.metric,
    objective: job.objective,
    best: {
      key: chosen.key,
      phase: chosen.candidate.phase,
      origin: chosen.candidate.origin,
      fitness: chosen.fitness,
      ...value(best.search),
    },
    choice: result.choice,
    holdout: { ...value(best.holdout), ...(best.difference && { difference: best.difference }) },
    full: { search: value(full.search), holdout: value(full.holdout) },
    baselines: rows
      .filter(({ role }) => role === "baseline")
      .map(({ label, note, search, holdout, difference }) => ({
        name: label,
        ...(note !== undefined && { note }),
        search: value(search),
        holdout: value(holdout),
        ...(difference && { difference }),
      })),
    samples: {
      search: job.sets.search.samples.length,
      choice: job.sets.choice.samples.length,
      holdout: job.sets.report.samples.length,
    },
    evaluations: search.evaluations,
    cacheHits: search.cacheHits,
    failures: search.failures,
    stopped: search.stopped,
    work: { tokenLayers: result.tokenLayers, avoidedTokenLayers: result.avoidedTokenLayers },
    seconds,
    before: modelSize(model),
    after: modelSize(model, result.plan),
    plan: result.plan,
    ...(search.front && { front: search.front }),
    ...(result.projected && { stockPlan: result.projected.plan }),
    identity: runIdentity(job),
  };
}

function value({ value, low, high, samples }: Measurement) {
  return { value, low, high, samples };
}

/** The table of a run for the terminal. */
export function scoreTable(rows: readonly ResultRow[]): string {
  return formatTable(
    ["model", "search", "holdout", "to full model"],
    rows.map(({ label, note, search, holdout, difference }) => [
      note === undefined ? label : `${label} (${note})`,
      formatInterval(search),
      formatInterval(holdout),
      difference
        ? `${formatDifference(difference.value)} (${formatDifference(difference.low)} to ${formatDifference(difference.high)})`
        : "",
    ]),
  );
}

/** Share of the full model's holdout score that is kept, in words; undefined when it means nothing. */
export function keptShare(rows: readonly ResultRow[]): string | undefined {
  const full = rows.find(({ role }) => role === "full")?.holdout;
  const chosen = rows.find(({ role }) => role === "chosen")?.holdout;
  if (!full || !chosen || !(full.value > 0) || full.metric === "perplexity") return undefined;
  return `${formatScore(chosen.value / full.value)} of the full model's holdout score`;
}
