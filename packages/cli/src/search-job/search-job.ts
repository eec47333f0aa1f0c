import type { AttentionPlan, Backend, Plugin, RunEmitter } from "@coppice/core";
import type { Metric, Objective, PairedDifference, TaskScore } from "@coppice/evaluate";
import type { RunFolder, RunIdentity } from "@coppice/search/node";
import type { FoundPlugin } from "../plugins/find-plugin.js";
import { attentionHash } from "../work/attention-plan-file.js";
import type { FittingExperts } from "../work/fit-memory.js";
import type { OpenModel } from "../work/open-model.js";
import type { WorkPool } from "../work/work-pool.js";
import type { SampleSets } from "./sample-sets.js";

/** A plugin that was loaded by name, with where it came from. */
export interface NamedPlugin<K extends "search" | "criterion"> {
  readonly plugin: Plugin<K>;
  readonly source: FoundPlugin;
}

/** A task whose score a search is to keep. */
export interface JobTask {
  readonly name: string;
  readonly sets: SampleSets;
  /** Fitness of its samples. */
  readonly objective: Objective;
  /** What tables show. */
  readonly metric: Metric;
  /** How much it counts among several tasks. */
  readonly weight: number;
  /** Mean of the objective on the search samples that a plan has to reach; only among several tasks. */
  readonly minimum?: number;
}

/** Everything that decides the result of a search. */
export interface SearchJob {
  readonly opened: OpenModel;
  /** At least one. */
  readonly tasks: readonly JobTask[];
  readonly strategy: NamedPlugin<"search">;
  /** Options of the strategy, `keep` and `topK` included. */
  readonly options: Readonly<Record<string, unknown>>;
  readonly keep: number;
  readonly topK: number | undefined;
  /** Present when `keep` was found for a memory limit: then no plan with more experts in some layer is chosen. */
  readonly memory?: FittingExperts;
  /** Whether the down projections of the plan that was chosen are fitted to what the whole model puts out. */
  readonly reconstruct: boolean;
  /** Criteria whose plans seed the search and stand in the table. */
  readonly criteria: readonly NamedPlugin<"criterion">[];
  /** Plans to evaluate at most. */
  readonly evaluations: number;
  /** Seconds to search at most. */
  readonly seconds?: number;
  /** Evaluations without a better plan that end the search. */
  readonly patience?: number;
  /** Candidates per ask. Default `askBatch`. */
  readonly batch?: number;
  readonly seed: number;
  readonly chat: boolean;
  /** What plans, and the whole model beside them, are scored and measured under. Statistics and fits see everything. */
  readonly attention?: AttentionPlan;
  readonly backend: FoundPlugin;
  readonly backendOptions: Readonly<Record<string, unknown>>;
}

/** Where and with what a job runs; none of it changes the result. */
export interface SearchRun {
  readonly job: SearchJob;
  readonly pool: WorkPool;
  /** The backend in this process, for what is fitted to activations. */
  readonly here: () => Promise<Backend>;
  readonly folder: RunFolder;
  readonly emitter: RunEmitter;
  readonly signal: AbortSignal;
  /** Folder of scores that runs share, and what the arithmetic of the workers is like (`numericsOf`). */
  readonly cache?: { readonly folder: string; readonly numerics: string };
}

/** How many of the best plans are tested again on the choice samples. */
export const finalistCount = 10;
/** Draws behind the random baseline: enough for a mean, few enough to cost little. */
export const randomDraws = 5;
/** Candidates per ask; part of the identity, because strategies see it. */
export const askBatch = 8;

/** A metric on one set of samples. */
export interface Measurement extends Pick<TaskScore, "metric" | "value" | "low" | "high" | "samples"> {
  /** Per sample, in task order. */
  readonly scores: readonly number[];
}

/** One model or plan in the table of results. */
export interface ResultRow {
  readonly label: string;
  readonly note?: string;
  readonly role: "full" | "chosen" | "baseline";
  readonly search: Measurement;
  readonly holdout: Measurement;
  /** Paired difference to the full model on the report samples; absent where a metric has no mean. */
  readonly difference?: PairedDifference;
  /** Of a baseline: by how much the chosen plan is above it on the report samples, sample by sample. */
  readonly gain?: PairedDifference;
}

export function runIdentity(job: SearchJob): RunIdentity {
  const { strategy, criteria, backend, tasks } = job;
  const [one] = tasks.length === 1 ? tasks : [];
  const source = ({ source }: { source: FoundPlugin }) => ({
    name: source.name,
    package: source.package,
    version: source.version,
  });
  return {
    model: job.opened.checkpoint.model.fingerprint,
    ...(one && { samples: one.sets.hashes }),
    chat: job.chat,
    ...(job.attention && { attention: attentionHash(job.attention) }),
    strategy: source(strategy),
    options: job.options,
    criteria: criteria.map(source),
    evaluations: job.evaluations,
    ...(job.seconds !== undefined && { seconds: job.seconds }),
    ...(job.patience !== undefined && { patience: job.patience }),
    batch: job.batch ?? askBatch,
    finalists: finalistCount,
    randomDraws,
    reconstruct: job.reconstruct,
    seed: job.seed,
    ...(job.memory && { memory: job.memory.limit }),
    ...(one
      ? { objective: one.objective, metric: one.metric }
      : { tasks: tasks.map(({ sets, ...task }) => ({ ...task, samples: sets.hashes })) }),
    backend: { ...source({ source: backend }), options: job.backendOptions },
  };
}
