import {
  type Candidate,
  definePlugin,
  type Plan,
  type Scored,
  type SearchContext,
  type SearchStrategy,
} from "@coppice/core";
import * as v from "valibot";
import { CovarianceAdaptation, defaultPopulation } from "./covariance-adaptation.js";
import { MergeSpace } from "./merge-space.js";
import { type StartPlan, startPlans } from "./start-plans.js";

/** Options of the plugin `cma-es`. */
export interface CmaEsOptions {
  /** Experts that every MoE layer keeps; all of them: merging without pruning. Needed unless there is a `plan`. */
  keep?: number | undefined;
  /** Experts per token; absent: the model's own. */
  topK?: number | undefined;
  /** Criterion whose experts are kept. Default: those of the criterion whose plan is best, or random ones. */
  start?: string | undefined;
  /** A plan, as in a plan file, whose experts are kept and whose merges are the beginning. */
  plan?: unknown;
  /** First standard deviation of every coefficient. Default 0.05. */
  sigma?: number | undefined;
  /** Furthest that a coefficient may be from 1 for a slot's own expert, from 0 for the others. Default 1. */
  bound?: number | undefined;
  /** Plans of the first generation, at least 4. Default 4 + ⌊3 ln N⌋ for N coefficients. */
  population?: number | undefined;
  /** What is learnt about how coefficients vary together. Default: "full" up to 64 of them, else "diagonal". */
  covariance?: "full" | "diagonal" | undefined;
}

declare module "@coppice/core" {
  interface SearchPlugins {
    "cma-es": CmaEsOptions;
  }
}

/** Dimensions up to which a full covariance can be learnt within some hundred evaluations, and decomposed at no cost. */
const fullDimensions = 64;

/** A restart that could not live to see so many generations would be a waste of the budget. */
const leastGenerations = 10;

/** Steps below what is left of a coefficient in a plan. */
const tolerance = 1e-6;

interface Settings extends CmaEsOptions {
  readonly sigma: number;
  readonly bound: number;
}

/**
 * CMA-ES on the merge coefficients of the best start plan. A run that has converged is started again from the same
 * plan with twice the population (IPOP: A. Auger and N. Hansen, CEC 2005) while the budget allows.
 */
class CmaEsSearch implements SearchStrategy {
  readonly #settings: Settings;
  readonly #context: SearchContext;
  #starts: StartPlan[];
  #best: { plan: Plan; fitness: number } | undefined;
  #left: number;
  #space: MergeSpace | undefined;
  #run: CovarianceAdaptation | undefined;
  /** The present generation, and the fitness of its first solutions. */
  #solutions: readonly Float64Array[] = [];
  #fitness: number[] = [];
  #asked: readonly StartPlan[] = [];

  constructor(settings: Settings, context: SearchContext) {
    this.#settings = settings;
    this.#context = context;
    this.#left = context.evaluations;
    this.#starts = startPlans(settings, context);
    for (const { plan } of this.#starts) new MergeSpace(context.model, plan, settings.bound);
  }

  ask(limit: number): readonly Candidate[] {
    this.#asked = this.#starts.splice(0, limit);
    if (this.#asked.length > 0) {
      this.#left -= this.#asked.length;
      return this.#asked.map(({ plan, origin }) => ({
        plan,
        phase: plan.layers.some(({ merge }) => merge) ? "merge" : "prune",
        origin,
      }));
    }
    if (this.#fitness.length === this.#solutions.length && !this.#nextGeneration()) return [];
    const from = this.#fitness.length;
    const solutions = this.#solutions.slice(from, from + limit);
    this.#left -= solutions.length;
    return solutions.map((solution) => ({
      plan: (this.#space as MergeSpace).plan(solution),
      phase: "merge",
      origin: `sample of ${this.#run?.population}`,
    }));
  }

  tell(results: readonly Scored[]): void {
    results.forEach(({ fitness }, i) => {
      const start = this.#asked[i];
      if (!start) this.#fitness.push(fitness);
      else if (!this.#best || fitness > this.#best.fitness) this.#best = { plan: start.plan, fitness };
    });
  }

  /** False when the search has converged and the budget does not allow a restart. */
  #nextGeneration(): boolean {
    const { bound } = this.#settings;
    this.#space ??= new MergeSpace(this.#context.model, (this.#best as { plan: Plan }).plan, bound);
    if (this.#run) this.#run.update(this.#fitness);
    if (!this.#run || this.#run.stopped !== undefined) {
      const population = this.#run
        ? 2 * this.#run.population
        : (this.#settings.population ?? defaultPopulation(this.#space.dimension));
      if (this.#run && leastGenerations * population > this.#left) return false;
      this.#run = this.#start(this.#space, population);
    }
    this.#solutions = this.#run.sample();
    this.#fitness = [];
    return true;
  }

  #start({ dimension, origin }: MergeSpace, population: number): CovarianceAdaptation {
    const { sigma, covariance = dimension <= fullDimensions ? "full" : "diagonal" } = this.#settings;
    const { rng } = this.#context;
    return new CovarianceAdaptation({ mean: origin, sigma, rng, population, covariance, tolerance });
  }
}

const whole = (least: number) => v.pipe(v.number(), v.integer(), v.minValue(least), v.maxValue(1_000_000));
const positive = v.pipe(v.number(), v.finite(), v.gtValue(0));

/** How to merge experts into those that are kept, by covariance matrix adaptation. */
export const cmaEs = definePlugin({
  kind: "search",
  name: "cma-es",
  contract: 1,
  summary: "How to merge experts into those that are kept, by covariance matrix adaptation.",
  reference: "https://arxiv.org/abs/1604.00772",
  options: v.strictObject({
    keep: v.optional(whole(1)),
    topK: v.optional(whole(1)),
    start: v.optional(v.pipe(v.string(), v.minLength(1))),
    plan: v.optional(v.unknown()),
    sigma: v.optional(positive, 0.05),
    bound: v.optional(positive, 1),
    population: v.optional(whole(4)),
    covariance: v.optional(v.picklist(["full", "diagonal"])),
  }),
  create: (options, context) => new CmaEsSearch(options, context),
});
