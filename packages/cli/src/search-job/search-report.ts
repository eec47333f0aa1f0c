import { modelSize } from "@coppice/core";
import { type ReportData, type ReportFact, type ReportRow, reportLayers } from "@coppice/report";
import { formatDuration } from "../terminal/format.js";
import type { JobResult } from "./run-job.js";
import type { ResultRow, SearchJob } from "./search-job.js";

export interface ReportRequest {
  readonly job: SearchJob;
  readonly result: JobResult;
  readonly seconds: number;
  /** Command line that repeats the run. */
  readonly command: string;
}

/** Holdout samples below this give intervals of more than about ±0.1. */
const fewSamples = 100;

/** What the HTML report of a search shows. */
export function searchReport({ job, result, seconds, command }: ReportRequest): ReportData {
  const { model } = job.opened.checkpoint;
  const { search, plan } = result;
  const experts = Math.max(
    ...model.layers.map(({ feedForward }) => (feedForward.kind === "moe" ? feedForward.experts.length : 0)),
  );
  const strategy = job.strategy.plugin.pluginName;
  const { sets } = job;
  return {
    title: `${job.opened.name}, ${sets.search.name}: ${job.keep} of ${experts} experts kept`,
    summary:
      `The strategy ${strategy} evaluated ${search.evaluations} plans on ${sets.search.samples.length} search samples. ` +
      `The best ${Math.min(search.finalists.length, search.evaluations)} were tested again on ${sets.choice.samples.length} samples to choose one; ` +
      `the holdout scores are of ${sets.report.samples.length} further samples that decided nothing.`,
    metric: job.metric,
    fitness: job.objective,
    rows: result.rows.map(toReportRow),
    evaluations: search.history.map(({ evaluation, fitness, phase, probe }) => ({
      evaluation,
      fitness: fitness ?? Number.NEGATIVE_INFINITY,
      phase,
      ...(probe && { probe }),
    })),
    ...(search.front && {
      front: {
        objectives: search.front.objectives,
        points: search.front.points.map((point) => {
          const layers = reportLayers(model, point.plan);
          return {
            values: point.values,
            experts: layers.map(({ kept }) => kept.length),
            topK: layers.map(({ topK }) => topK),
            ...(point.key === result.chosen.key && { chosen: true }),
          };
        }),
      },
    }),
    layers: reportLayers(model, plan),
    before: modelSize(model),
    after: modelSize(model, plan),
    work: workFacts(result, seconds),
    identity: [
      { label: "model", value: `${job.opened.name}, ${model.family}, fingerprint ${model.fingerprint}` },
      { label: "task", value: sets.search.name },
      { label: "holdout", value: sets.report.name },
      {
        label: "strategy",
        value: `${strategy}, ${job.strategy.source.package} ${job.strategy.source.version}`,
      },
      { label: "options", value: JSON.stringify(job.options) },
      {
        label: "seeded by",
        value: job.criteria.map(({ plugin }) => plugin.pluginName).join(", ") || "nothing",
      },
      { label: "objective", value: job.objective },
      { label: "backend", value: `${job.backend.name}, ${job.backend.package} ${job.backend.version}` },
      { label: "seed", value: String(job.seed) },
    ],
    command,
    notes:
      sets.report.samples.length < fewSamples
        ? [`Only ${sets.report.samples.length} holdout samples: the intervals are wide.`]
        : [],
  };
}

function workFacts({ search, tokenLayers, avoidedTokenLayers }: JobResult, seconds: number): ReportFact[] {
  const total = tokenLayers + avoidedTokenLayers;
  const share = total > 0 ? ` (${((100 * avoidedTokenLayers) / total).toFixed(1)} %)` : "";
  return [
    { label: "plans evaluated", value: String(search.evaluations) },
    { label: "plans proposed again, free", value: String(search.cacheHits) },
    ...(search.replayed > 0
      ? [{ label: "taken from an earlier, interrupted run", value: String(search.replayed) }]
      : []),
    ...(search.failures > 0 ? [{ label: "plans that failed", value: String(search.failures) }] : []),
    { label: "token-layers run", value: tokenLayers.toLocaleString("en") },
    { label: "token-layers avoided", value: `${avoidedTokenLayers.toLocaleString("en")}${share}` },
    { label: "time", value: formatDuration(1000 * seconds) },
  ];
}

function toReportRow({ label, note, role, search, holdout, difference }: ResultRow): ReportRow {
  const { samples } = holdout;
  return {
    label,
    role,
    search,
    holdout,
    ...(note !== undefined && { note }),
    ...(difference && { difference: { ...difference, samples } }),
  };
}
