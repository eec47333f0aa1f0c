import { modelSize } from "@coppice/core";
import { type ReportData, type ReportFact, type ReportRow, reportLayers } from "@coppice/report";
import { formatDuration } from "../terminal/format.js";
import type { JobResult } from "./run-job.js";
import type { JobTask, ResultRow, SearchJob } from "./search-job.js";
import { crossFittedLine, memoryLine, minimumLine } from "./search-result.js";
import type { TaskTable } from "./task-table.js";

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
  const { tasks } = job;
  const names = tasks.map(({ name }) => name).join(", ");
  const samples = (set: "search" | "report") =>
    tasks.reduce((sum, { sets }) => sum + sets[set].samples.length, 0);
  return {
    title: `${job.opened.name}, ${names}: ${job.keep} of ${experts} experts kept`,
    summary:
      `The strategy ${strategy} evaluated ${search.evaluations} plans on ${samples("search")} search samples${tasks.length > 1 ? ` of ${tasks.length} tasks` : ""}. ` +
      `${chosenFrom(result)}; the holdout scores are of ${samples("report")} other samples, on which nothing was run before.`,
    scores: result.tables.map(({ task, rows, minimum }) => ({
      ...(tasks.length > 1 && { task: task.name }),
      metric: task.metric,
      ...(minimum && { note: minimumLine(task, minimum) }),
      rows: rows.map(toReportRow),
    })),
    fitness: fitnessName(tasks),
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
      ...tasks.flatMap((task) => taskFacts(task, tasks.length > 1)),
      {
        label: "strategy",
        value: `${strategy}, ${job.strategy.source.package} ${job.strategy.source.version}`,
      },
      ...(job.memory ? [{ label: "memory", value: memoryLine(job.memory) }] : []),
      { label: "options", value: JSON.stringify(job.options) },
      {
        label: "seeded by",
        value: job.criteria.map(({ plugin }) => plugin.pluginName).join(", ") || "nothing",
      },
      { label: "reconstruction", value: reconstructionLine(result) },
      { label: "objective", value: fitnessName(tasks) },
      { label: "backend", value: `${job.backend.name}, ${job.backend.package} ${job.backend.version}` },
      { label: "seed", value: String(job.seed) },
    ],
    command,
    notes: [
      ...result.tables.flatMap((table) => notesOf(table, tasks.length > 1)),
      ...(search.stopped === "time" ? [timeNote] : []),
    ],
  };
}

/** How one of the best plans was chosen, in words. */
function chosenFrom({ search, choice }: JobResult): string {
  const best = `The best ${Math.min(search.finalists.length, search.evaluations)} and those of the criteria`;
  return choice.by === "further samples"
    ? `${best} were tested again on ${choice.samples} further samples of the task to choose one`
    : `One of ${best.replace("The", "the")} was chosen by how often it is the best on samples drawn from these`;
}

/** What the down projections were fitted to, in words. */
function reconstructionLine({ reconstructed, tables }: JobResult): string {
  if (!reconstructed) return "none";
  const { texts, tokens, layers, crossFitted } = reconstructed;
  const fitted = layers.filter(({ choice }) => choice !== null).length;
  const source = texts === "samples" ? "the search samples" : "texts that the model wrote";
  const unseen = crossFitted ? `; ${tables[0]?.task.metric} ${crossFittedLine(crossFitted)}` : "";
  return `down projections of ${fitted} of ${layers.length} layers, fitted to ${tokens.toLocaleString("en")} tokens of ${source}${unseen}`;
}

/** What fitness is a mean of. */
function fitnessName(tasks: readonly JobTask[]): string {
  const objectives = [...new Set(tasks.map(({ objective }) => objective))].join(" and ");
  if (tasks.length === 1) return objectives;
  const minimums = tasks.some(({ minimum }) => minimum !== undefined);
  return `Weighted mean of ${objectives}${minimums ? ", below all others where a minimum is missed," : ""}`;
}

function taskFacts({ name, sets, objective, weight, minimum }: JobTask, several: boolean): ReportFact[] {
  const { search, report } = sets;
  if (!several) {
    return [
      { label: "task", value: search.name },
      { label: "holdout", value: report.name },
    ];
  }
  const least = minimum === undefined ? "" : `, at least ${minimum}`;
  return [
    { label: `task ${name}`, value: `${search.name}, weight ${weight}, ${objective}${least}` },
    { label: `holdout of ${name}`, value: report.name },
  ];
}

function notesOf({ task, minimum }: TaskTable, several: boolean): string[] {
  const where = several ? `${task.name}: ` : "";
  const { length } = task.sets.report.samples;
  return [
    ...(length < fewSamples ? [`${where}Only ${length} holdout samples: the intervals are wide.`] : []),
    ...(minimum && minimum.search.value < minimum.minimum ? [`${where}${minimumLine(task, minimum)}`] : []),
  ];
}

const timeNote =
  "A limit of time ended the search, so that how far it got depends on the machine: in a new folder the same command may find another plan.";

/** Why a search ended, where its budget of evaluations was not the reason. */
const stoppedBy: Partial<Record<JobResult["search"]["stopped"], string>> = {
  time: ", then the time was up",
  patience: ", the last of which brought nothing better",
};

function workFacts({ search, searching, work }: JobResult, seconds: number): ReportFact[] {
  const counted = (name: string, done: number, avoided: number): ReportFact[] => {
    const total = done + avoided;
    const share = total > 0 ? ` (${((100 * avoided) / total).toFixed(1)} %)` : "";
    return [
      { label: `${name} run`, value: done.toLocaleString("en") },
      { label: `${name} avoided`, value: `${avoided.toLocaleString("en")}${share}` },
    ];
  };
  return [
    { label: "plans evaluated", value: `${search.evaluations}${stoppedBy[search.stopped] ?? ""}` },
    { label: "plans proposed again, free", value: String(search.cacheHits) },
    ...(search.replayed > 0
      ? [{ label: "taken from an earlier, interrupted run", value: String(search.replayed) }]
      : []),
    ...(search.failures > 0 ? [{ label: "plans that failed", value: String(search.failures) }] : []),
    ...counted("token-layers", work.tokenLayers, work.avoidedTokenLayers),
    ...counted("token-experts", work.expertTokens, work.avoidedExpertTokens),
    { label: "time", value: formatDuration(1000 * seconds) },
    ...(searching.plans > 0
      ? [
          {
            label: "of it, searching",
            value: `${formatDuration(1000 * searching.seconds)}, ${(searching.plans / searching.seconds).toPrecision(3)} plans a second`,
          },
        ]
      : []),
  ];
}

function toReportRow({ label, note, role, search, holdout, difference, gain }: ResultRow): ReportRow {
  const { samples } = holdout;
  return {
    label,
    role,
    search,
    holdout,
    ...(note !== undefined && { note }),
    ...(difference && { difference: { ...difference, samples } }),
    ...(gain && { gain: { ...gain, samples } }),
  };
}
