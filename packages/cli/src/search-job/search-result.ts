import { modelSize } from "@coppice/core";
import type { PairedDifference } from "@coppice/evaluate";
import { formatBytes, formatDifference, formatScore } from "@coppice/report";
import { formatInterval, formatTable } from "../terminal/format.js";
import type { FittingExperts } from "../work/fit-memory.js";
import type { CrossFitted } from "./cross-fitted.js";
import type { Reconstructed } from "./reconstruct-plan.js";
import type { JobResult } from "./run-job.js";
import { type JobTask, type Measurement, type ResultRow, runIdentity, type SearchJob } from "./search-job.js";
import type { MinimumCheck, TaskTable } from "./task-table.js";

/** Contents of result.json; `--json` prints the same (`shownPlan`). Of several tasks, `tasks` has the results one by one. */
export function searchResult(job: SearchJob, result: JobResult, seconds: number) {
  const { model } = job.opened.checkpoint;
  const { search, chosen } = result;
  const tasks = result.tables.map(taskResult);
  const [one] = tasks.length === 1 ? tasks : [];
  return {
    format: "coppice.result",
    version: 1,
    ...(one && { metric: one.metric, objective: one.objective }),
    best: {
      key: chosen.key,
      phase: chosen.candidate.phase,
      origin: chosen.candidate.origin,
      fitness: chosen.fitness,
      ...one?.search,
    },
    choice: result.choice,
    ...(result.reconstructed && { reconstruction: reconstruction(result.reconstructed) }),
    ...(one
      ? { holdout: one.holdout, full: one.full, baselines: one.baselines, samples: one.samples }
      : { tasks }),
    evaluations: search.evaluations,
    cacheHits: search.cacheHits,
    failures: search.failures,
    stopped: search.stopped,
    work: result.work,
    seconds,
    searching: result.searching,
    ...(job.memory && { memory: job.memory }),
    before: modelSize(model),
    after: modelSize(model, result.plan),
    plan: result.plan,
    ...(search.front && { front: search.front }),
    ...(result.stock && { stockPlan: result.stock }),
    identity: runIdentity(job),
  };
}

function reconstruction({ before, scored, texts, tokens, layers, crossFitted }: Reconstructed) {
  return {
    fitness: { before, after: scored.fitness },
    texts,
    tokens,
    ...(crossFitted && { crossFitted }),
    layers: layers.map(({ layer, choice, score }) => ({ layer, ...choice, fitness: score })),
  };
}

/** The results of one task, ready for JSON. */
export function taskResult({ task, rows, minimum }: TaskTable) {
  const row = (role: ResultRow["role"]) => rows.find((entry) => entry.role === role) as ResultRow;
  const best = row("chosen");
  const full = row("full");
  const { search, choice, report } = task.sets;
  return {
    name: task.name,
    weight: task.weight,
    metric: task.metric,
    objective: task.objective,
    ...(minimum && { minimum }),
    search: value(best.search),
    holdout: { ...value(best.holdout), ...(best.difference && { difference: best.difference }) },
    full: { search: value(full.search), holdout: value(full.holdout) },
    baselines: rows
      .filter(({ role }) => role === "baseline")
      .map(({ label, note, search, holdout, difference, gain }) => ({
        name: label,
        ...(note !== undefined && { note }),
        search: value(search),
        holdout: value(holdout),
        ...(difference && { difference }),
        ...(gain && { gain }),
      })),
    samples: {
      search: search.samples.length,
      choice: choice?.samples.length ?? 0,
      holdout: report.samples.length,
    },
  };
}

function value({ value, low, high, samples }: Measurement) {
  return { value, low, high, samples };
}

/** The tables of a run for the terminal, each with the share that was kept. */
export function showTables(tables: readonly TaskTable[]): string {
  return tables
    .map(({ task, rows, minimum }) => {
      const { name, metric, weight } = task;
      return [
        ...(tables.length === 1 ? [] : [`${name}: ${metric}, weight ${weight}`, ""]),
        scoreTable(rows),
        "",
        keptShare(rows),
        minimum && minimumLine(task, minimum),
      ]
        .filter((line) => line !== undefined)
        .join("\n");
    })
    .join("\n\n");
}

/** What a memory limit came to, in words. */
export function memoryLine({ keep, topK, bytes, limit }: FittingExperts): string {
  const fewer = topK === undefined ? "" : `, top-k lowered to ${topK}`;
  return `${keep} experts per layer${fewer}, ${formatBytes(bytes)} of weights within ${formatBytes(limit)}`;
}

/** What the search samples say of a fit that has not seen them, in words. */
export function crossFittedLine(crossFitted: CrossFitted): string {
  return `${formatInterval(crossFitted)} on the search samples, each half of them under a fit to the other half`;
}

/** What became of a minimum, in words. */
export function minimumLine({ objective }: JobTask, { minimum, search, holdout }: MinimumCheck): string {
  const kept = search.value >= minimum;
  return (
    `${kept ? "Reaches" : "MISSES"} the minimum of ${formatScore(minimum)} (${objective}) on the search samples: ` +
    `${formatInterval(search)}; on the holdout: ${formatInterval(holdout)}.`
  );
}

function scoreTable(rows: readonly ResultRow[]): string {
  return formatTable(
    ["model", "search", "holdout", "to full model", "chosen is better by"],
    rows.map(({ label, note, search, holdout, difference, gain }) => [
      note === undefined ? label : `${label} (${note})`,
      formatInterval(search),
      formatInterval(holdout),
      showDifference(difference),
      showDifference(gain),
    ]),
  );
}

function showDifference(difference: PairedDifference | undefined): string {
  if (!difference) return "";
  const { value, low, high } = difference;
  return `${formatDifference(value)} (${formatDifference(low)} to ${formatDifference(high)})`;
}

/** Share of the full model's holdout score that is kept, in words; undefined when it means nothing. */
function keptShare(rows: readonly ResultRow[]): string | undefined {
  const full = rows.find(({ role }) => role === "full")?.holdout;
  const chosen = rows.find(({ role }) => role === "chosen")?.holdout;
  if (!full || !chosen || !(full.value > 0) || full.metric === "perplexity") return undefined;
  return `${formatScore(chosen.value / full.value)} of the full model's holdout score`;
}
