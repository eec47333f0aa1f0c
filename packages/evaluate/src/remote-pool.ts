import {
  addWork,
  CoppiceError,
  type Executor,
  isCoppiceError,
  type MoeModel,
  noWork,
  type Plan,
  type PlanScores,
  type RunEmitter,
  throwIfAborted,
} from "@coppice/core";
import type { TaskScore } from "./evaluate-task.js";
import { defaultMetric, type Metric } from "./metrics.js";
import { defaultObjective, type Objective } from "./objective.js";
import { RecentMap } from "./recent-map.js";
import { limitTask, type Task } from "./task.js";
import type { ParsedOutcome } from "./work-outcome.js";
import {
  checkMeasure,
  type Measure,
  type SampleSet,
  sampleSet,
  type WorkRequest,
  workRequest,
} from "./work-request.js";

/** Carries requests to workers and outcomes back. */
export interface WorkTransport extends AsyncDisposable {
  /** Requests that keep the workers busy. */
  readonly preferredBatch: number;
  /**
   * Outcomes of all requests, in their order; requests of one call have different ids. Each outcome is told once as it
   * arrives. Rejects when the transport itself fails.
   */
  run(
    requests: readonly WorkRequest[],
    samples: SampleSet,
    options: { readonly signal?: AbortSignal; readonly onOutcome?: (outcome: ParsedOutcome) => void },
  ): Promise<ParsedOutcome[]>;
  dispose(): Promise<void>;
}

export interface RemotePoolOptions {
  /** Described here, loaded by the workers. */
  readonly model: MoeModel;
  /** What computes: versions and backend with its options; workers with another engine refuse. */
  readonly engine: string;
  /** Disposed with the pool. */
  readonly transport: WorkTransport;
  /** Gets a `warn` when the arithmetic of two workers differs. */
  readonly emitter?: RunEmitter;
}

export interface RemoteTaskOptions {
  readonly task: Task;
  /** First samples only; for text, first windows. */
  readonly limit?: number;
  readonly chat?: boolean;
  readonly signal?: AbortSignal;
}

/** Measures plans on workers elsewhere: what a model pool does, without the model. */
export interface RemotePool extends AsyncDisposable {
  readonly model: MoeModel;
  /** An executor for searches on one task. Disposing it leaves the pool as it is. */
  scorer(options: RemoteTaskOptions & { readonly objective?: Objective }): Promise<Executor>;
  /** Measures a metric, on one worker. */
  evaluateTask(
    options: RemoteTaskOptions & {
      readonly metric?: string;
      readonly plan?: Plan;
      readonly emitter?: RunEmitter;
    },
  ): Promise<TaskScore>;
  dispose(): Promise<void>;
}

/** Outcomes that are remembered, so that asking again for a plan of a batch that failed as a whole costs nothing. */
const remembered = 1024;

export function createRemotePool(options: RemotePoolOptions): RemotePool {
  const { model, engine, transport, emitter } = options;
  const known = new RecentMap<ParsedOutcome["result"]>(remembered);
  /** Numerics -> first worker that has them. */
  const arithmetic = new Map<string, string>();

  const meet = ({ worker, numerics }: ParsedOutcome): void => {
    if (numerics === undefined || arithmetic.has(numerics)) return;
    const [other] = arithmetic.values();
    arithmetic.set(numerics, worker);
    if (other === undefined) return;
    emitter?.notify("warn", {
      code: "arithmetic",
      message:
        `${worker} computes other low bits than ${other} (another kind of processor?): the same search may end ` +
        "differently when workers share the plans differently",
    });
  };

  const template = ({ task: whole, limit, chat = false }: RemoteTaskOptions, measure: Measure) => {
    const text = whole.form === "text";
    const task = text ? whole : limitTask(whole, limit);
    checkMeasure(measure, task.form);
    const set = sampleSet(task);
    const fields = { model: model.fingerprint, engine, samples: set.hash, chat, measure, name: task.name };
    return { set, fields: { ...fields, ...(text && limit !== undefined && { limit }) } };
  };

  const run = async (
    requests: readonly WorkRequest[],
    set: SampleSet,
    signal: AbortSignal | undefined,
    onOutcome: (outcome: ParsedOutcome) => void = () => {},
  ): Promise<ParsedOutcome["result"][]> => {
    const missing = new Map<string, WorkRequest>();
    for (const request of requests) if (!known.get(request.id)) missing.set(request.id, request);
    const results = new Map(requests.map(({ id }) => [id, known.get(id)]));
    if (missing.size > 0) {
      const wanted = [...missing.values()];
      // What is not a plan's fault ends the call without waiting for the others.
      const failed = new AbortController();
      let failure: CoppiceError | undefined;
      const stop = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal;
      const outcomes = await transport
        .run(wanted, set, {
          signal: stop,
          onOutcome: (outcome) => {
            meet(outcome);
            onOutcome(outcome);
            if (isCoppiceError(outcome.result) && !isPlanFault(outcome.result)) {
              failure ??= outcome.result;
              failed.abort();
            }
          },
        })
        .catch((error) => {
          // Nobody waits for the others any more.
          failed.abort();
          throwIfAborted(signal, "waiting for workers");
          throw failure ?? error;
        });
      if (failure) throw failure;
      outcomes.forEach(({ result }, i) => {
        const { id } = wanted[i] as WorkRequest;
        known.set(id, result);
        results.set(id, result);
      });
    }
    return requests.map(({ id }) => results.get(id) as ParsedOutcome["result"]);
  };

  const dispose = () => transport.dispose();
  return {
    model,
    dispose,
    [Symbol.asyncDispose]: dispose,

    async scorer({ objective, ...source }) {
      const { set, fields } = template(source, {
        objective: objective ?? defaultObjective(source.task.form),
      });
      const expected =
        source.task.form === "text" ? undefined : (JSON.parse(set.text).samples.length as number);
      let work = noWork;
      let disposed = false;
      const end = async () => {
        disposed = true;
      };
      return {
        preferredBatch: transport.preferredBatch,
        async evaluate(plans, { signal } = {}) {
          throwIfAborted(signal, "evaluating plans");
          if (disposed) {
            throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the executor was used after its disposal");
          }
          const requests = plans.map((plan) => workRequest(fields, plan, model));
          const results = await run(requests, set, signal, (outcome) => {
            work = addWork(work, outcome.work);
          });
          return results.map((result) => scoresOf(result, expected));
        },
        work: () => work,
        dispose: end,
        [Symbol.asyncDispose]: end,
      };
    },

    async evaluateTask({ metric, plan, signal, emitter: progress, ...source }) {
      const { set, fields } = template(source, { metric: metric ?? defaultMetric(source.task.form) });
      progress?.notify("progress", { stage: "measuring elsewhere", done: 0, total: 1, unit: "tasks" });
      const [result] = await run([workRequest(fields, plan, model)], set, signal);
      if (isCoppiceError(result)) throw result;
      progress?.notify("progress", { stage: "measuring elsewhere", done: 1, total: 1, unit: "tasks" });
      return result as TaskScore & { metric: Metric };
    },
  };
}

/** Errors that say something about a plan and nothing about the workers. */
function isPlanFault({ code, retryable }: CoppiceError): boolean {
  if (retryable) return false;
  return (
    code.startsWith("COPPICE_PLAN_") ||
    code === "COPPICE_BACKEND_UNSUPPORTED" ||
    code === "COPPICE_BACKEND_FAILED"
  );
}

function scoresOf(result: ParsedOutcome["result"], expected: number | undefined): PlanScores {
  if (isCoppiceError(result)) throw result;
  if (expected !== undefined && result.scores.length !== expected) {
    throw new CoppiceError(
      "COPPICE_EXECUTOR_RESULT",
      `a worker returned ${result.scores.length} scores, expected ${expected}`,
    );
  }
  const { scores, correct } = result as PlanScores;
  // Copies: a remembered result must not change when its receiver writes into it.
  return { scores: scores.slice(), ...(correct && { correct: correct.slice() }) };
}
