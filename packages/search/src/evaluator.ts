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
  raceParts,
  throwIfAborted,
} from "@coppice/core";
import { type EvaluatedRecord, evaluationRecords, type FailedRecord, type RunJournal } from "./journal.js";
import {
  evaluationOf,
  fromRecord,
  isPartial,
  isSettled,
  type Job,
  type Known,
  type Rival,
  toRecord,
  withScores,
} from "./known-scores.js";

/** A plan to evaluate; `Candidate` is one. `phase` and `origin` are only journalled. */
export interface EvaluationRequest {
  readonly plan: Plan;
  readonly phase?: string;
  readonly origin?: string;
  /** Key of a plan that was evaluated on all samples: evaluation stops when this plan is unlikely to beat it. */
  readonly rival?: string;
}

/** What is known of one plan on one sample set. */
export interface Evaluation {
  readonly key: string;
  /** Canonical form of the plan. */
  readonly plan: Plan;
  /** Mean of `scores`, or -Infinity when the plan failed; for a lost race see `Scored.fitness`. */
  readonly fitness: number;
  /** Per sample; empty when the plan failed or lost a race. */
  readonly scores: Float64Array;
  /** 1 where a sample is answered right, where the task has right answers. */
  readonly correct?: Uint8Array;
  /** Share of samples answered right. */
  readonly accuracy?: number;
  /** Why the plan failed. */
  readonly error?: CoppiceError;
  /** Samples that the plan was evaluated on when it lost a race. */
  readonly samples?: number;
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
  readonly #known = new Map<string, Known>();
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
      this.#learn(record.key, fromRecord(record));
    }
  }

  /** Plans that the executor evaluated; results from the journal do not count. */
  get computed(): number {
    return this.#computed;
  }

  /** True when `key` costs no evaluation; what a lost race left to evaluate is the same evaluation. */
  has(key: string): boolean {
    return this.#known.has(key);
  }

  /**
   * Results in the order of `requests`, which must be valid plans. Repeated plans are evaluated once.
   * @throws COPPICE_ABORTED, COPPICE_PLUGIN_INVALID for a rival that was not evaluated, and whatever ends the run
   */
  async evaluate(
    requests: readonly EvaluationRequest[],
    options: { signal?: AbortSignal | undefined } = {},
  ): Promise<Evaluation[]> {
    throwIfAborted(options.signal, "evaluating plans");
    const keys = requests.map((request) => planKey(request.plan, this.#model));
    const jobs = new Map<string, Job>();
    keys.forEach((key, i) => {
      const request = requests[i] as EvaluationRequest;
      const job = jobs.get(key);
      if (!job) {
        const plan = canonicalPlan(request.plan, this.#model);
        jobs.set(key, { request, plan, rival: this.#rival(request), known: this.#known.get(key) });
      } else if (job.request.rival !== request.rival) job.rival = undefined;
    });
    await this.#compute(jobs, options.signal);
    return keys.map((key) => evaluationOf(key, jobs.get(key) as Job));
  }

  /** Evaluates what is not settled yet, part by part where candidates race. */
  async #compute(jobs: ReadonlyMap<string, Job>, outer: AbortSignal | undefined): Promise<void> {
    const open = [...jobs].filter(([, job]) => !isSettled(job));
    const { parts = 1 } = this.#executor;
    const canRace = ({ rival, known }: Job) => parts > 1 && (rival !== undefined || known !== undefined);
    const racing = open.flatMap(([, job]) => (canRace(job) ? [job] : []));
    const whole = open.flatMap(([, job]) => (canRace(job) ? [] : [job]));
    const failed = new AbortController();
    const signal = outer ? AbortSignal.any([outer, failed.signal]) : failed.signal;
    // Every candidate goes on by itself: parts are with different workers, which have work while there is any.
    const races = new Races(racing.length, parts, this.#executor.busyParts ?? 0);
    const running = [this.#whole(whole, signal), ...racing.map((job) => this.#race(job, races, signal))];
    try {
      await Promise.all(running);
    } catch (error) {
      failed.abort();
      await Promise.allSettled(running);
      throw error;
    }
    await this.#remember(new Set(open.map(([key]) => key)), jobs);
  }

  /** Evaluates all samples of plans, in one call. */
  async #whole(jobs: readonly Job[], signal: AbortSignal): Promise<void> {
    if (jobs.length === 0) return;
    const plans = jobs.map(({ plan }) => plan);
    const results = await this.#execute(plans, undefined, signal);
    for (const [i, job] of jobs.entries()) {
      job.known = withScores(undefined, results[i] as PlanScores | CoppiceError, undefined);
    }
  }

  /** Evaluates a plan part by part until it is settled. Of parts behind that nothing is learned, however many were evaluated. */
  async #race(job: Job, races: Races, signal: AbortSignal): Promise<void> {
    const { parts } = races;
    while (!isSettled(job)) {
      const samples = (job.known ?? job.rival)?.scores.length ?? 0;
      const asked = races.next(job.known?.partial?.known ?? 0);
      const results = await Promise.all(asked.map((part) => this.#execute([job.plan], part, signal)));
      for (const [i, part] of asked.entries()) {
        const [result] = results[i] as [PlanScores | CoppiceError];
        job.known = withScores(job.known, result, { part, parts, samples });
        if (isSettled(job)) break;
      }
    }
    races.open--;
  }

  /** Journals and learns what is new. */
  async #remember(touched: ReadonlySet<string>, jobs: ReadonlyMap<string, Job>): Promise<void> {
    const ready: (EvaluatedRecord | FailedRecord)[] = [];
    let end: CoppiceError | undefined;
    const fresh = [...jobs].filter(([key]) => touched.has(key));
    this.#computed += fresh.filter(([key]) => !this.#known.has(key)).length;
    for (const [key, { plan, request, known }] of fresh) {
      const found = known as Known;
      this.#held.push(toRecord(this.#scope, key, found, { ...request, plan }));
      const { error } = found;
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
    for (const [key, { known }] of fresh) this.#learn(key, known as Known);
  }

  /** What a request must beat; undefined when it does not race or the rival failed. */
  #rival({ rival }: EvaluationRequest): Rival | undefined {
    if (rival === undefined) return undefined;
    const known = this.#known.get(rival);
    if (!known || isPartial(known)) {
      throw new CoppiceError(
        "COPPICE_PLUGIN_INVALID",
        `a candidate's rival is ${JSON.stringify(rival).slice(0, 80)}, which is no plan with the scores of all samples`,
        { hint: "this is a fault of the strategy: a rival must have been told, without `samples`" },
      );
    }
    const parts = raceParts(known.scores.length);
    return known.error || parts === 1 ? undefined : { scores: known.scores, parts };
  }

  #learn(key: string, known: Known): void {
    this.#known.set(key, known);
    this.#succeeded ||= known.error === undefined;
  }

  async #execute(
    plans: readonly Plan[],
    part: number | undefined,
    signal: AbortSignal,
  ): Promise<(PlanScores | CoppiceError)[]> {
    try {
      const results = await this.#executor.evaluate(plans, {
        signal,
        ...(part !== undefined && { part }),
      });
      if (results.length !== plans.length) {
        throw new CoppiceError(
          "COPPICE_INTERNAL",
          `the executor returned ${results.length} results for ${plans.length} plans`,
        );
      }
      return results;
    } catch (error) {
      if (signal.aborted) throw abortedError(signal, "evaluating plans");
      if (!isCandidateFault(error)) throw error;
      if (plans.length === 1) return [error];
      // The call was rejected as a whole; one at a time shows whose fault it is.
      const results: (PlanScores | CoppiceError)[] = [];
      for (const plan of plans) results.push(...(await this.#execute([plan], part, signal)));
      return results;
    }
  }
}

/** The races of one call. */
class Races {
  constructor(
    /** Those that are not settled. */
    public open: number,
    readonly parts: number,
    /** `busyParts` of the executor. */
    readonly busy: number,
  ) {}

  /** Parts from `part` on that are evaluated next, for each of the open races. */
  next(part: number): number[] {
    const count = Math.max(1, Math.floor(this.busy / this.open));
    return Array.from({ length: Math.min(count, this.parts - part) }, (_, i) => part + i);
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
