import { CoppiceError, canonicalPlan, type MoeModel, type Plan, parsePlan, planKey } from "@coppice/core";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import { parseMetric } from "./metrics.js";
import { checkObjective, type Objective, objectives } from "./objective.js";
import { parseTask, type Task, type TaskForm, taskLimits } from "./task.js";

/** Version of requests and outcomes; both sides must have the same. */
export const workVersion = 1;

/** How a plan is measured: by the fitness of a search, or by a metric. */
export type Measure = { readonly objective: Objective } | { readonly metric: string };

/** Samples in the form in which they travel. */
export interface SampleSet {
  /** SHA-256 of `text`, 64 hex digits. */
  readonly hash: string;
  readonly text: string;
}

/** A plan to measure somewhere else. JSON. */
export interface WorkRequest {
  readonly version: typeof workVersion;
  /** Hash of everything below but `name`: equal requests have equal results. */
  readonly id: string;
  /** Fingerprint of the model. */
  readonly model: string;
  /** What computes: versions and backend with its options. Other engines may round differently. */
  readonly engine: string;
  /** Hash of the samples. */
  readonly samples: string;
  readonly chat: boolean;
  /** First windows of a text only. */
  readonly limit?: number;
  readonly measure: Measure;
  /** Canonical plan; absent: the model as it is. */
  readonly plan?: Plan;
  /** Name of the task, for messages. */
  readonly name: string;
}

/** Everything of a request but its plan. */
export type WorkTemplate = Omit<WorkRequest, "id" | "plan" | "version">;

/** Samples as text with its hash; `readSampleSet` is the inverse. */
export function sampleSet({ form, samples }: Task): SampleSet {
  const text = JSON.stringify({ form, samples });
  return { hash: bytesToHex(sha256(utf8ToBytes(text))), text };
}

/**
 * Reads samples that came from elsewhere, and checks that they are the promised ones.
 * @throws COPPICE_EXECUTOR_FOREIGN when the hash differs, COPPICE_TASK_LINE, COPPICE_TASK_EMPTY
 */
export function readSampleSet(text: string, hash: string, name: string): Task {
  const found = bytesToHex(sha256(utf8ToBytes(text)));
  if (found !== hash) {
    throw new CoppiceError(
      "COPPICE_EXECUTOR_FOREIGN",
      `the samples of ${name} have the hash ${found}, the request is for those of ${hash}`,
      { details: { found, wanted: hash } },
    );
  }
  const { form, samples } = JSON.parse(text) as {
    form: TaskForm;
    samples: { line: number; text?: string }[];
  };
  const [first] = samples;
  // A whole text may be longer than a line of a task file may be.
  const whole = form === "text" && samples.length === 1 && (first?.text?.length ?? 0) > taskLimits.lineChars;
  const task = whole
    ? parseTask(first?.text ?? "", `${name}.txt`)
    : parseTask(
        samples.map((sample) => JSON.stringify(sample)).join("\n"),
        name.replace(/\.txt$/i, ".jsonl"),
      );
  const lines = task.samples.map((sample, i) => ({ ...sample, line: samples[i]?.line ?? i + 1 }));
  return { ...task, name, samples: lines } as Task;
}

/** A request with its id. */
export function workRequest(template: WorkTemplate, plan: Plan | undefined, model: MoeModel): WorkRequest {
  return {
    version: workVersion,
    id: workId(template, plan, model),
    ...template,
    ...(plan && { plan: canonicalPlan(plan, model) }),
  };
}

function workId(template: WorkTemplate, plan: Plan | undefined, model: MoeModel): string {
  const { model: fingerprint, engine, samples, chat, limit, measure } = template;
  const key = plan ? planKey(plan, model) : "";
  const how = "objective" in measure ? ["objective", measure.objective] : ["metric", measure.metric];
  const text = JSON.stringify([workVersion, fingerprint, engine, samples, chat, limit ?? null, how, key]);
  return bytesToHex(sha256(utf8ToBytes(text))).slice(0, 32);
}

/** What a worker has, against which requests are checked. */
export interface WorkerIdentity {
  readonly model: MoeModel;
  readonly engine: string;
}

/**
 * Reads a request that came from elsewhere.
 * @throws COPPICE_EXECUTOR_FOREIGN with both values when it is for another model, engine or version, or when its id
 * is not the hash of its contents; COPPICE_PLAN_INVALID, COPPICE_PLAN_MODEL, COPPICE_TASK_METRIC
 */
export function parseWorkRequest(value: unknown, worker: WorkerIdentity): WorkRequest {
  const fields = (typeof value === "object" && value !== null ? value : {}) as Partial<
    Record<keyof WorkRequest, unknown>
  >;
  check("request version", fields.version, workVersion);
  check("model", fields.model, worker.model.fingerprint);
  check("engine", fields.engine, worker.engine);
  const { id, model, engine, samples, chat, limit, measure, plan, name } = fields as WorkRequest;
  const shaped =
    typeof id === "string" &&
    /^[0-9a-f]{64}$/.test(samples) &&
    typeof chat === "boolean" &&
    (limit === undefined || (Number.isSafeInteger(limit) && limit >= 1)) &&
    typeof name === "string" &&
    typeof measure === "object" &&
    measure !== null &&
    ("objective" in measure ? objectives.includes(measure.objective) : typeof measure.metric === "string");
  if (!shaped) {
    throw new CoppiceError(
      "COPPICE_EXECUTOR_FOREIGN",
      "the request is not one of this release: it is malformed",
    );
  }
  const template: WorkTemplate = {
    ...{ model, engine, samples, chat, name },
    measure: "objective" in measure ? { objective: measure.objective } : { metric: measure.metric },
    ...(limit !== undefined && { limit }),
  };
  const parsed = plan === undefined ? undefined : parsePlan(plan, worker.model);
  const request = workRequest(template, parsed, worker.model);
  check("id", id, request.id);
  return request;
}

/** @throws COPPICE_TASK_METRIC when the measure does not fit the form of the samples */
export function checkMeasure(measure: Measure, form: TaskForm): void {
  if ("objective" in measure) checkObjective(measure.objective, form);
  else parseMetric(measure.metric, form);
}

function check(what: string, found: unknown, own: string | number): void {
  if (found === own) return;
  const shown = JSON.stringify(found)?.slice(0, 200) ?? String(found);
  throw new CoppiceError(
    "COPPICE_EXECUTOR_FOREIGN",
    `the work has the ${what} ${shown}, this worker has ${JSON.stringify(own)}`,
    {
      hint: "start workers with the model, the backend and the release of the search",
      details: { what, work: shown, worker: own },
    },
  );
}
