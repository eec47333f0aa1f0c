import type { Plan } from "@coppice/core";
import {
  addWork,
  CoppiceError,
  createPlan,
  type Executor,
  isCoppiceError,
  type MoeModel,
  noWork,
  type WorkCounters,
} from "@coppice/core";
import type { TaskScore } from "./evaluate-task.js";
import type { Objective } from "./objective.js";
import { RecentMap } from "./recent-map.js";
import type { Task } from "./task.js";
import { encodeResult, type WorkOutcome } from "./work-outcome.js";
import {
  checkMeasure,
  parseWorkRequest,
  readSampleSet,
  type WorkRequest,
  workVersion,
} from "./work-request.js";

/** What measures plans: the model pool of `@coppice/executor-local`, or anything like it. */
export interface MeasuringPool {
  readonly model: MoeModel;
  scorer(options: {
    readonly task: Task;
    readonly limit?: number;
    readonly chat?: boolean;
    readonly objective?: Objective;
    readonly signal?: AbortSignal;
  }): Promise<Executor>;
  evaluateTask(options: {
    readonly task: Task;
    readonly limit?: number;
    readonly chat?: boolean;
    readonly metric?: string;
    readonly plan?: Plan;
    readonly signal?: AbortSignal;
  }): Promise<TaskScore>;
}

export interface WorkServerOptions {
  /** Not disposed. */
  readonly pool: MeasuringPool;
  /** What computes: versions and backend with its options. */
  readonly engine: string;
  /** Who answers, in words: host and process. */
  readonly worker: string;
  /** Hash of logits of a fixed input, to notice workers whose arithmetic differs. */
  readonly numerics?: string;
}

/** Answers requests on a model that is loaded here. */
export interface WorkServer extends AsyncDisposable {
  /**
   * Checks a request and measures. An error of the plan or of the measurement is part of the outcome. Requests that were
   * answered lately are not computed again: their outcome, with the work that it took, is told once more.
   * @param samples gives the text of the request's samples
   * @throws COPPICE_EXECUTOR_FOREIGN, with both values, for work that is not for this worker or whose samples are not
   * those of the request; COPPICE_ABORTED; and the errors of `samples` that are no COPPICE errors
   */
  answer(
    request: unknown,
    samples: (hash: string) => Promise<string>,
    options?: { signal?: AbortSignal },
  ): Promise<WorkOutcome>;
  dispose(): Promise<void>;
}

/** Sets of samples that stay prepared: search, choice and report of a run, and one more. */
const preparedSets = 4;
/** Outcomes that are remembered, for results that were lost on their way. */
const rememberedOutcomes = 256;

export function createWorkServer({ pool, engine, worker, numerics }: WorkServerOptions): WorkServer {
  const scorers = new RecentMap<Promise<CountedScorer>>(preparedSets, (scorer) => {
    void scorer.then(({ executor }) => executor.dispose()).catch(() => {});
  });
  const tasks = new RecentMap<Task>(preparedSets);
  const outcomes = new RecentMap<WorkOutcome>(rememberedOutcomes);

  const taskOf = async (request: WorkRequest, samples: (hash: string) => Promise<string>): Promise<Task> => {
    const known = tasks.get(request.samples);
    if (known) return known;
    const task = readSampleSet(await samples(request.samples), request.samples, request.name);
    tasks.set(request.samples, task);
    return task;
  };

  const scorerOf = (request: WorkRequest, task: Task, objective: Objective): Promise<CountedScorer> => {
    const { chat, limit } = request;
    const key = JSON.stringify([request.samples, objective, chat, limit ?? null]);
    const known = scorers.get(key);
    if (known) return known;
    const made = pool
      .scorer({ task, objective, chat, ...(limit !== undefined && { limit }) })
      .then((executor) => ({ executor, reported: executor.work() }));
    scorers.set(key, made);
    made.catch(() => scorers.delete(key));
    return made;
  };

  const measure = async (
    request: WorkRequest,
    samples: (hash: string) => Promise<string>,
    signal: AbortSignal | undefined,
  ): Promise<Omit<WorkOutcome, "version" | "id" | "worker">> => {
    const task = await taskOf(request, samples);
    const { measure: how, plan, chat, limit } = request;
    checkMeasure(how, task.form);
    const stop = signal ? { signal } : {};
    if ("metric" in how) {
      const score = await pool.evaluateTask({
        task,
        metric: how.metric,
        chat,
        ...stop,
        ...(limit !== undefined && { limit }),
        ...(plan && { plan }),
      });
      return { ...encodeResult(score), work: noWork };
    }
    const scorer = await scorerOf(request, task, how.objective);
    const [result] = await scorer.executor.evaluate([plan ?? createPlan(pool.model)], stop);
    if (!result) throw new CoppiceError("COPPICE_INTERNAL", "the executor returned no result");
    return { ...encodeResult(result), work: newWork(scorer) };
  };

  const dispose = async () => scorers.clear();
  return {
    async answer(value, samples, { signal } = {}) {
      const asked = (value as Partial<WorkRequest> | null)?.id;
      const who = {
        version: workVersion,
        id: typeof asked === "string" ? asked.slice(0, 64) : "",
        worker,
        ...(numerics !== undefined && { numerics }),
      } as const;
      try {
        const request = parseWorkRequest(value, { model: pool.model, engine });
        const known = outcomes.get(request.id);
        if (known) return known;
        const outcome = { ...who, ...(await measure(request, samples, signal)) };
        outcomes.set(request.id, outcome);
        return outcome;
      } catch (error) {
        // Foreign work, an abort and what is no error of the measurement are the caller's business.
        if (!isCoppiceError(error) || signal?.aborted || error.code === "COPPICE_EXECUTOR_FOREIGN")
          throw error;
        return { ...who, error: error.toJSON(), work: noWork };
      }
    },
    dispose,
    [Symbol.asyncDispose]: dispose,
  };
}

interface CountedScorer {
  readonly executor: Executor;
  /** What earlier outcomes have told. */
  reported: WorkCounters;
}

function newWork(scorer: CountedScorer): WorkCounters {
  const now = scorer.executor.work();
  const work = addWork(now, scorer.reported, -1);
  scorer.reported = now;
  return work;
}
