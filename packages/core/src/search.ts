import type { MoeModel } from "./model.js";
import type { Plan } from "./plan.js";
import type { Rng } from "./rng.js";

/** A plan that a strategy wants evaluated. */
export interface Candidate {
  readonly plan: Plan;
  /** Part of the search it belongs to, such as "prune" or "merge"; shown and journalled. */
  readonly phase: string;
  /** How it came about, such as "seed:reap", "mutation"; shown and journalled. */
  readonly origin: string;
  /**
   * True for a plan that is evaluated only for what it teaches, such as one that keeps more experts than was asked
   * for; it costs an evaluation and is never a result of the search.
   */
  readonly probe?: boolean;
  /**
   * Key of a plan that this one must beat to matter, told before with the scores of all samples. A run that races stops
   * evaluating the candidate when it is unlikely to; see `Scored.samples`. A strategy that needs the fitness of every
   * plan as it is names none.
   */
  readonly rival?: string;
}

/** A candidate with its result. */
export interface Scored {
  readonly candidate: Candidate;
  /** Canonical identity of the plan; two candidates with the same key compute the same. */
  readonly key: string;
  /**
   * Mean of `scores`; the larger, the better. NaN never occurs: a failed candidate has -Infinity. One that lost a race has
   * its rival's fitness plus the mean difference to the rival on the samples that it was evaluated on.
   */
  readonly fitness: number;
  /** Fitness of every sample, in sample order; empty when the candidate failed or lost a race. */
  readonly scores: Float64Array;
  /** Share of samples answered right, where the task has right answers and all were evaluated, else undefined. */
  readonly accuracy?: number;
  /** Present when the candidate lost a race: samples that it was evaluated on. It is never a result of the search. */
  readonly samples?: number;
  /** True when the result came from memory and cost no evaluation. */
  readonly cached: boolean;
}

/** What a strategy may use. Everything random comes from `rng`, so that a run can be repeated and resumed. */
export interface SearchContext {
  readonly model: MoeModel;
  readonly rng: Rng;
  /** Evaluations that the run allows altogether; repeated plans are free. */
  readonly evaluations: number;
  /** Criterion name -> score per MoE layer and expert, to seed the search; may be empty. */
  readonly scores: ReadonlyMap<string, readonly Float64Array[]>;
}

/**
 * Decides which plans to try. Created by a plugin of kind "search".
 *
 * A strategy is a deterministic function of its options, its context and the results it was told: resuming a run
 * asks and tells it all over again from the journal, so it needs no files of its own. It must not look at the
 * clock, at `cached`, or at any other source of chance.
 */
export interface SearchStrategy {
  /**
   * Up to `limit` candidates that can be evaluated side by side; an empty array ends the search. Proposing a plan
   * again is allowed and free. Candidates may be told in a later call only if `ask` was not called in between.
   */
  ask(limit: number): readonly Candidate[];
  /** Results of the candidates of the last `ask`, in the same order. */
  tell(results: readonly Scored[]): void;
}
