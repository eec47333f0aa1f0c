import {
  type Candidate,
  CoppiceError,
  checkWholeNumber,
  type Executor,
  type MoeModel,
  type Plan,
  parsePlan,
  type RunEmitter,
  type Scored,
  type SearchStrategy,
  throwIfAborted,
} from "@coppice/core";
import { type Evaluation, PlanEvaluator } from "./evaluator.js";
import { frontOf, type RankedFrontPoint, type SearchFront } from "./front.js";
import type { RunJournal } from "./journal.js";
import { SearchClock } from "./search-clock.js";
import { SearchProgress } from "./search-progress.js";

/** Candidates per `ask` unless the caller says otherwise: enough for a few workers, few enough for steady state. */
export const defaultBatch = 8;

/** Asks in a row that may bring nothing but known plans before the run ends: the strategy has run dry. */
export const idleAskLimit = 1000;

export interface SearchOptions {
  readonly strategy: SearchStrategy;
  readonly model: MoeModel;
  readonly executor: Executor;
  /** Most plans to evaluate; plans that are known are free. */
  readonly evaluations: number;
  /**
   * Ends the run after the round in which so many seconds were spent on it, those before a resume included. How far a run
   * gets in that time is up to the machine; what is journalled stays, and repeating a finished run ends it at the same place.
   */
  readonly seconds?: number;
  /** Ends the run when so many evaluations brought no better plan. */
  readonly patience?: number;
  /**
   * The limit of every `ask`. It decides what the strategy sees, so it belongs to the identity of a run and
   * must not follow the number of workers. Default `defaultBatch`.
   */
  readonly batch?: number;
  /** Makes the run resumable. */
  readonly journal?: RunJournal;
  readonly signal?: AbortSignal;
  readonly emitter?: RunEmitter;
  /** Called with a new best plan (canonical) before the next plans are asked for; awaited. */
  readonly onBest?: (best: Scored) => void | Promise<void>;
  /** How many of the best plans `SearchResult.finalists` holds. Default 20, as EEP's released code re-tests. */
  readonly finalists?: number;
}

/** One evaluated plan, as plots and reports need it; survives JSON. */
export interface SearchStep {
  /** 1 for the first. */
  readonly evaluation: number;
  readonly key: string;
  readonly phase: string;
  readonly origin: string;
  /** null when the plan failed. */
  readonly fitness: number | null;
  readonly accuracy?: number;
  /** True for a plan that was evaluated only for what it teaches and is no result. */
  readonly probe?: true;
  /** Samples that a plan was evaluated on which lost a race. */
  readonly samples?: number;
  /** Best fitness so far; null before the first success. */
  readonly best: number | null;
}

export interface SearchResult {
  /** Highest fitness; the earlier one of equals. Its plan is canonical. */
  readonly best: Scored;
  /** The best plans, best first, all different. */
  readonly finalists: readonly Scored[];
  /** Plans evaluated in the whole run, those before a resume included. */
  readonly evaluations: number;
  /** Proposals of plans that were known already. */
  readonly cacheHits: number;
  /** Plans among `evaluations` whose results came from the journal. */
  readonly replayed: number;
  /** Plans among `evaluations` that failed. */
  readonly failures: number;
  readonly history: readonly SearchStep[];
  /** Of a strategy with several objectives (`FrontStrategy`): the plans that no other plan beats in all of them. */
  readonly front?: SearchFront<RankedFrontPoint>;
  /**
   * Why it ended: the budget or the time is spent, nothing better was found for too long, the strategy is done, or it
   * proposed only known plans for too long.
   */
  readonly stopped: "budget" | "time" | "patience" | "strategy" | "idle";
}

/**
 * Runs a strategy until a budget is spent: ask, validate, look up, evaluate what is unknown, journal, tell.
 *
 * Resuming is replaying: the strategy is asked all over again and known results come from the journal, so a run
 * that was killed ends with the same result as one that was not, and nothing is evaluated twice.
 *
 * @throws COPPICE_USAGE for a budget, patience or batch below 1 and for no time, COPPICE_PLUGIN_INVALID when the strategy proposes more
 * than asked for or invalid plans, COPPICE_ABORTED, COPPICE_RUN_JOURNAL, and the executor's own errors
 */
export async function runSearch(options: SearchOptions): Promise<SearchResult> {
  const { strategy, model, signal } = options;
  const budget = checkWholeNumber("evaluations", options.evaluations);
  const batch = checkWholeNumber("batch", options.batch ?? defaultBatch);
  const patience =
    options.patience === undefined
      ? Number.POSITIVE_INFINITY
      : checkWholeNumber("patience", options.patience);
  const { seconds = Number.POSITIVE_INFINITY } = options;
  if (!(seconds > 0)) {
    throw new CoppiceError("COPPICE_USAGE", `seconds is ${seconds}, expected more than 0`);
  }
  const clock = options.seconds === undefined ? undefined : new SearchClock(options.journal);
  const evaluator = new PlanEvaluator(options);
  const progress = new SearchProgress(options.emitter, budget);
  /** Key -> whether it was no result so far. Plans are large: only those of the finalists are kept. */
  const seen = new Map<string, boolean>();
  const finalists = new Finalists(options.finalists ?? 20);
  const history: SearchStep[] = [];
  let saved: Scored | undefined;
  let failure: CoppiceError | undefined;
  let cacheHits = 0;
  let idleAsks = 0;
  /** Evaluations after the round that found the best plan. */
  let improved = 0;
  let stopped: SearchResult["stopped"] = "budget";

  while (seen.size < budget) {
    throwIfAborted(signal, "searching");
    // Probes alone are no result: time and patience end a search that has one, or that fails.
    if (clock && clock.seconds >= seconds && (finalists.best || failure)) {
      stopped = "time";
      break;
    }
    const { best: bestBefore } = finalists;
    const startedAt = performance.now();
    // The remaining budget bounds the limit, so a batch can never overspend; both follow from history alone.
    const limit = Math.min(batch, budget - seen.size);
    const candidates = checked(strategy.ask(limit), limit, model);
    if (candidates.length === 0) {
      stopped = "strategy";
      break;
    }
    const computedBefore = evaluator.computed;
    const askedAt = performance.now();
    const evaluations = await evaluator.evaluate(candidates, { signal });
    const computed = evaluator.computed - computedBefore;
    progress.worked(computed, performance.now() - askedAt);

    const seenBefore = seen.size;
    const results = candidates.map((candidate, i) => {
      const evaluation = evaluations[i] as Evaluation;
      const wasProbe = seen.get(evaluation.key);
      const cached = wasProbe !== undefined;
      // Neither a probe nor a plan that lost a race is a result, until it is proposed as one.
      const probe = candidate.probe === true || evaluation.samples !== undefined;
      const scored = toScored(candidate, evaluation, cached);
      if (cached) cacheHits++;
      failure = evaluation.error ?? failure;
      if (!probe && wasProbe !== false) {
        // Without its rival: on other samples a finalist is evaluated to the end.
        const { rival: _, ...finalist } = candidate;
        finalists.add({ ...scored, candidate: { ...finalist, plan: evaluation.plan }, cached: false });
      }
      if (!cached) history.push(toStep(scored, seen.size + 1, finalists.best));
      seen.set(evaluation.key, probe && wasProbe !== false);
      progress.scored(scored, seen.size, finalists.best, 1000 * (seconds - (clock?.seconds ?? 0)));
      return scored;
    });
    strategy.tell(results);
    const { best } = finalists;
    if (best && best !== saved && computed > 0) {
      saved = best;
      await options.onBest?.(best);
    }
    await clock?.count(seen.size, computed > 0 ? (performance.now() - startedAt) / 1000 : 0);
    if (best !== bestBefore) improved = seen.size;
    else if (seen.size - improved >= patience && (best || failure)) {
      stopped = "patience";
      break;
    }
    idleAsks = seen.size > seenBefore ? 0 : idleAsks + 1;
    if (idleAsks >= idleAskLimit) {
      stopped = "idle";
      break;
    }
    // Known plans need no input or output: without a pause a long row of them would hold up signals.
    if (idleAsks % 64 === 63) await new Promise<void>((resolve) => setTimeout(resolve));
  }

  const { best } = finalists;
  if (!best) {
    throw failure ?? new CoppiceError("COPPICE_PLUGIN_INVALID", "the strategy proposed no plan at all");
  }
  if (best !== saved) await options.onBest?.(best);
  const front = frontOf(strategy, model);
  return {
    best,
    finalists: finalists.ranked.slice(0, options.finalists ?? 20),
    evaluations: seen.size,
    cacheHits,
    replayed: seen.size - evaluator.computed,
    failures: history.filter((step) => step.fitness === null).length,
    history,
    ...(front && { front }),
    stopped,
  };
}

/** The best results so far, best first, the earlier one of equals first. */
class Finalists {
  readonly ranked: Scored[] = [];
  readonly #most: number;

  constructor(most: number) {
    this.#most = Math.max(1, most);
  }

  get best(): Scored | undefined {
    return this.ranked[0];
  }

  add(scored: Scored): void {
    if (scored.fitness === Number.NEGATIVE_INFINITY) return;
    const worse = this.ranked.findIndex((other) => other.fitness < scored.fitness);
    const at = worse < 0 ? this.ranked.length : worse;
    if (at >= this.#most) return;
    this.ranked.splice(at, 0, scored);
    this.ranked.length = Math.min(this.ranked.length, this.#most);
  }
}

function checked(candidates: readonly Candidate[], limit: number, model: MoeModel): readonly Candidate[] {
  if (candidates.length > limit) {
    throw new CoppiceError(
      "COPPICE_PLUGIN_INVALID",
      `the strategy proposed ${candidates.length} candidates, at most ${limit} were asked for`,
    );
  }
  for (const { plan, phase, origin } of candidates) parseProposal(plan, phase, origin, model);
  return candidates;
}

function parseProposal(plan: Plan, phase: string, origin: string, model: MoeModel): void {
  try {
    parsePlan(plan, model);
  } catch (cause) {
    throw new CoppiceError(
      "COPPICE_PLUGIN_INVALID",
      `the strategy proposed (${phase}, ${origin}) a plan that does not fit the model: ${(cause as Error).message}`,
      { cause, hint: "this is a fault of the strategy; searchConformance of @coppice/plugin-kit finds it" },
    );
  }
}

function toScored(candidate: Candidate, evaluation: Evaluation, cached: boolean): Scored {
  const { key, fitness, scores, accuracy, samples } = evaluation;
  return {
    candidate,
    key,
    fitness,
    scores,
    ...(accuracy !== undefined && { accuracy }),
    ...(samples !== undefined && { samples }),
    cached,
  };
}

function toStep(scored: Scored, evaluation: number, best: Scored | undefined): SearchStep {
  const { phase, origin, probe } = scored.candidate;
  const { samples } = scored;
  return {
    evaluation,
    key: scored.key,
    phase,
    origin,
    fitness: Number.isFinite(scored.fitness) ? scored.fitness : null,
    ...(scored.accuracy !== undefined && { accuracy: scored.accuracy }),
    ...(probe && { probe }),
    ...(samples !== undefined && { samples }),
    best: best?.fitness ?? null,
  };
}
