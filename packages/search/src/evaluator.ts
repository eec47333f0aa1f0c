import {
  abortedError,
  CoppiceError,
  canonicalPlan,
  type Executor,
  isCoppiceError,
  type MoeModel,
  type Plan,
  type PlanScores,
  planKey,
  reviveError,
  throwIfAborted,
} from "@coppice/core";
import { type EvaluatedRecord, evaluationRecords, type FailedRecord, type RunJournal } from "./journal.js";

/** A plan to evaluate; `Candidate` is one. `phase` and `origin` are only journalled. */
export interface EvaluationRequest {
  readonly plan: Plan;
  readonly phase?: string;
  readonly origin?: string;
}

/** What is known of one plan on one sample set. */
export interface Evaluation extends KnownEvaluation {
  /** Canonical form of the plan. */
  readonly plan: Plan;
}

/** The part that is remembered: the plans of a long run may not fit into memory. */
interface KnownEvaluation {
  readonly key: string;
  /** Mean of `scores`, or -Infinity when the plan failed. */
  readonly fitness: number;
  /** Per sample; empty when the plan failed. */
  readonly scores: Float64Array;
  /** 1 where a sample is answered right, where the task has right answers. */
  readonly correct?: Uint8Array;
  /** Share of samples answered right. */
  readonly accuracy?: number;
  /** Why the plan failed. */
  readonly error?: CoppiceError;
}

export interface PlanEvaluatorOptions {
  readonly model: MoeModel;
  readonly executor: Executor;
  /** Results found here are not computed again; new ones are appended. */
  readonly journal?: RunJournal;
  /** Name of the sample set in the journal: "search", "choice", "holdout". Default "search". */
  readonly scope?: string;
}

/**
 * Longest plan, in characters of JSON, that is written to the journal: any subset fits, while merge matrices of a
 * model with thousands of experts take megabytes per plan.
 */
const longestPlan = 2 ** 16;

/**
 * With so many failures and not one success the fault is not a candidate's: the run ends with the error
 * instead of spending its budget on it.
 */
export const failuresBeforeGivingUp = 8;

/**
 * Workers that end one candidate after the other, each at every attempt, lack memory or a library rather than a better
 * plan: the run ends, and none of these candidates is remembered as failed.
 */
export const crashesBeforeGivingUp = 3;

/**
 * Evaluates plans through an executor, each canonical plan once for the life of the journal.
 *
 * A candidate fails when the executor rejects with a permanent COPPICE_PLAN_*, COPPICE_BACKEND_UNSUPPORTED,
 * COPPICE_BACKEND_FAILED or COPPICE_BACKEND_CRASHED error for it alone, or when a sample scores NaN or infinite. Every
 * other error is the run's and is thrown.
 */
export class PlanEvaluator {
  readonly #model: MoeModel;
  readonly #executor: Executor;
  readonly #journal: RunJournal | undefined;
  readonly #scope: string;
  readonly #known = new Map<string, KnownEvaluation>();
  /** Failures that wait for a success before they are written; see `failuresBeforeGivingUp` and for crashes below it. */
  readonly #held: (EvaluatedRecord | FailedRecord)[] = [];
  #succeeded = false;
  /** Candidates in a row that crashed a worker. */
  #crashes = 0;
  #computed = 0;

  /** @throws COPPICE_RUN_JOURNAL when the journal holds a malformed record of this scope */
  constructor(options: PlanEvaluatorOptions) {
    this.#model = options.model;
    this.#executor = options.executor;
    this.#journal = options.journal;
    this.#scope = options.scope ?? "search";
    for (const record of evaluationRecords(this.#journal?.records ?? [], this.#scope)) {
      this.#learn(fromRecord(record));
    }
  }

  /** Plans that the executor evaluated; results from the journal do not count. */
  get computed(): number {
    return this.#computed;
  }

  /** True when `key` costs no evaluation. */
  has(key: string): boolean {
    return this.#known.has(key);
  }

  /**
   * Results in the order of `requests`, which must be valid plans. Repeated plans are evaluated once.
   * @throws COPPICE_ABORTED, and whatever ends the run
   */
  async evaluate(
    requests: readonly EvaluationRequest[],
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<Evaluation[]> {
    throwIfAborted(options.signal, "evaluating plans");
    const keys = requests.map((request) => planKey(request.plan, this.#model));
    const missing = new Map<string, EvaluationRequest>();
    keys.forEach((key, i) => {
      if (!this.#known.has(key) && !missing.has(key)) missing.set(key, requests[i] as EvaluationRequest);
    });
    if (missing.size > 0) await this.#compute(missing, options.signal);
    return keys.map((key, i) => ({
      ...(this.#known.get(key) as KnownEvaluation),
      plan: canonicalPlan((requests[i] as EvaluationRequest).plan, this.#model),
    }));
  }

  async #compute(
    missing: ReadonlyMap<string, EvaluationRequest>,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const plans = [...missing.values()].map((request) => canonicalPlan(request.plan, this.#model));
    const results = await this.#execute(plans, signal);
    const evaluations = [...missing.keys()].map((key, i) =>
      toEvaluation(key, results[i] as PlanScores | CoppiceError),
    );
    this.#computed += evaluations.length;
    const requests = [...missing.values()];
    const ready: (EvaluatedRecord | FailedRecord)[] = [];
    let end: CoppiceError | undefined;
    for (const [i, evaluation] of evaluations.entries()) {
      const request = requests[i] as EvaluationRequest;
      this.#held.push(toRecord(this.#scope, evaluation, { ...request, plan: plans[i] as Plan }));
      const { error } = evaluation;
      if (!error) this.#crashes = 0;
      else if (error.code === "COPPICE_BACKEND_CRASHED") this.#crashes++;
      this.#succeeded ||= !error;
      if (this.#succeeded && this.#crashes === 0) ready.push(...this.#held.splice(0));
      const isHopeless = !this.#succeeded && this.#held.length >= failuresBeforeGivingUp;
      if (isHopeless || this.#crashes >= crashesBeforeGivingUp) {
        end = error;
        break;
      }
    }
    if (ready.length > 0) await this.#journal?.append(ready);
    if (end) throw end;
    for (const evaluation of evaluations) this.#learn(evaluation);
  }

  #learn(evaluation: KnownEvaluation): void {
    this.#known.set(evaluation.key, evaluation);
    this.#succeeded ||= evaluation.error === undefined;
  }

  async #execute(
    plans: readonly Plan[],
    signal: AbortSignal | undefined,
  ): Promise<(PlanScores | CoppiceError)[]> {
    try {
      const results = await this.#executor.evaluate(plans, signal ? { signal } : {});
      if (results.length !== plans.length) {
        throw new CoppiceError(
          "COPPICE_INTERNAL",
          `the executor returned ${results.length} results for ${plans.length} plans`,
        );
      }
      return results;
    } catch (error) {
      if (signal?.aborted) throw abortedError(signal, "evaluating plans");
      if (!isCandidateFault(error)) throw error;
      if (plans.length === 1) return [error];
      // The call was rejected as a whole; one at a time shows whose fault it is.
      const results: (PlanScores | CoppiceError)[] = [];
      for (const plan of plans) results.push(...(await this.#execute([plan], signal)));
      return results;
    }
  }
}

function isCandidateFault(error: unknown): error is CoppiceError {
  if (!isCoppiceError(error) || error.retryable) return false;
  return (
    error.code.startsWith("COPPICE_PLAN_") ||
    error.code === "COPPICE_BACKEND_UNSUPPORTED" ||
    error.code === "COPPICE_BACKEND_FAILED" ||
    error.code === "COPPICE_BACKEND_CRASHED"
  );
}

function toEvaluation(key: string, result: PlanScores | CoppiceError): KnownEvaluation {
  if (isCoppiceError(result)) {
    return { key, fitness: Number.NEGATIVE_INFINITY, scores: new Float64Array(0), error: result };
  }
  const { scores, correct } = result;
  if (scores.length === 0 || (correct && correct.length !== scores.length)) {
    throw new CoppiceError(
      "COPPICE_INTERNAL",
      `the executor returned ${scores.length} scores and ${correct?.length ?? "no"} answers for one plan`,
    );
  }
  const bad = scores.findIndex((score) => !Number.isFinite(score));
  if (bad >= 0) {
    const message = `sample ${bad} scored ${scores[bad]}, expected a finite number`;
    return toEvaluation(key, new CoppiceError("COPPICE_BACKEND_FAILED", message));
  }
  return {
    key,
    fitness: scores.reduce((sum, score) => sum + score, 0) / scores.length,
    scores: Float64Array.from(scores),
    ...(correct && {
      correct: Uint8Array.from(correct),
      accuracy: correct.reduce((sum, value) => sum + value, 0) / correct.length,
    }),
  };
}

function fromRecord(record: EvaluatedRecord | FailedRecord): KnownEvaluation {
  if (record.type === "failed") return toEvaluation(record.key, reviveError(record.error));
  return toEvaluation(record.key, {
    scores: Float64Array.from(record.scores),
    ...(record.correct !== undefined && { correct: Uint8Array.from(record.correct, Number) }),
  });
}

function toRecord(
  scope: string,
  evaluation: KnownEvaluation,
  request: EvaluationRequest,
): EvaluatedRecord | FailedRecord {
  const common = {
    scope,
    key: evaluation.key,
    ...(JSON.stringify(request.plan).length <= longestPlan && { plan: request.plan }),
    ...(request.phase !== undefined && { phase: request.phase }),
    ...(request.origin !== undefined && { origin: request.origin }),
  };
  if (evaluation.error) return { type: "failed", ...common, error: evaluation.error.toJSON() };
  return {
    type: "evaluated",
    ...common,
    scores: [...evaluation.scores],
    ...(evaluation.correct && { correct: evaluation.correct.join("") }),
  };
}
