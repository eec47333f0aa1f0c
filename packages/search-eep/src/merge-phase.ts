import type { Rng, Scored, SearchContext } from "@coppice/core";
import { type Genome, genomeFromSubsets, genomeKey, planFromGenome, type Subsets } from "./genome.js";
import type { Layout } from "./layout.js";
import { stepCoefficients } from "./operators-merge.js";
import type { Phase, Proposal } from "./phase.js";
import type { DefaultRates } from "./presets.js";
import type { Pruned } from "./prune-phase.js";

/** Draws for a child that is new; only a step of no length needs a second one. */
const redraws = 50;

/** Rechenberg's rule: the step size is right when one step in five succeeds. */
const targetSuccess = 0.2;
const adaptation = 0.2;

/**
 * Merge phase of the default preset: a (1+λ) evolution strategy on the coefficients of the best plan. Few groups
 * change in a step, which leaves the layers before them as they were, and the step size follows the 1/5 success rule.
 */
export class MergePhase implements Phase {
  readonly #layout: Layout;
  readonly #rng: Rng;
  readonly #rates: DefaultRates;
  readonly #mapped: boolean;
  readonly #seen = new Set<string>();
  readonly #race: boolean;
  #parent: { genome: Genome; result: Result | undefined };
  #sigma: number;
  #left: number;
  #asked: Genome[] = [];

  constructor(
    layout: Layout,
    context: SearchContext,
    options: {
      rates: DefaultRates;
      mapped: boolean;
      evaluations: number;
      /** True to let children race against their parent. */
      race: boolean;
      /** Best plan of the prune phase; absent when nothing was pruned: all experts are kept. */
      start?: Pruned | undefined;
    },
  ) {
    this.#layout = layout;
    this.#rng = context.rng;
    this.#rates = options.rates;
    this.#mapped = options.mapped;
    this.#sigma = options.rates.sigma;
    this.#left = options.evaluations;
    const all: Subsets = layout.groups.map((group) => Array.from({ length: group.experts }, (_, e) => e));
    this.#parent = {
      genome: genomeFromSubsets(layout, options.start?.subsets ?? all),
      result: options.start,
    };
    this.#race = options.race;
  }

  propose(limit: number): Proposal[] {
    const wanted = Math.min(limit, this.#left);
    this.#asked = [];
    const origin = this.#parent.result === undefined ? "model" : "step";
    if (origin === "model" && wanted > 0) this.#asked.push(this.#parent.genome);
    else {
      // Of large batches a quarter: who evaluates many plans at a time has them, though a parent is left later.
      const children = Math.max(this.#rates.mergeChildren, Math.floor(limit / 4));
      while (this.#asked.length < Math.min(wanted, children)) {
        const child = this.#breed();
        if (!child) break;
        this.#asked.push(child);
      }
    }
    this.#left -= this.#asked.length;
    const rival = this.#race ? this.#parent.result?.key : undefined;
    return this.#asked.map((genome) => ({
      plan: planFromGenome(this.#layout, genome),
      origin,
      ...(rival !== undefined && { rival }),
    }));
  }

  learn(results: readonly Scored[]): void {
    const { result: before } = this.#parent;
    if (before === undefined) {
      this.#parent = { genome: this.#parent.genome, result: results[0] };
      return;
    }
    const successes = results.filter((result) => this.#beats(result, before)).length;
    this.#sigma *= Math.exp(adaptation * (successes / Math.max(1, results.length) - targetSuccess));
    results.forEach((result, i) => {
      const { result: parent } = this.#parent;
      if (this.#beats(result, before) && result.fitness > (parent?.fitness as number)) {
        this.#parent = { genome: this.#asked[i] as Genome, result };
      }
    });
  }

  /** True when a child is better than its parent by more than `leastGain` standard errors of the mean difference. */
  #beats(child: Result, parent: Result): boolean {
    const { leastGain } = this.#rates;
    const gain = child.fitness - parent.fitness;
    if (leastGain === 0 || !(gain > 0) || !Number.isFinite(parent.fitness)) return gain > 0;
    return gain > leastGain * standardError(child.scores, parent.scores);
  }

  #breed(): Genome | undefined {
    const { stepGroups: groups, entryProbability: probability } = this.#rates;
    for (let i = 0; i < redraws; i++) {
      const child = stepCoefficients(this.#rng, this.#parent.genome, {
        groups,
        probability,
        sigma: this.#sigma,
        router: this.#mapped,
      });
      const key = genomeKey(child);
      if (this.#seen.has(key)) continue;
      this.#seen.add(key);
      return child;
    }
    return undefined;
  }
}

type Result = Pick<Scored, "fitness" | "key" | "scores">;

/** Of the mean difference of paired scores. */
function standardError(a: Float64Array, b: Float64Array): number {
  const differences = a.map((value, i) => value - (b[i] as number));
  const mean = differences.reduce((sum, value) => sum + value, 0) / differences.length;
  const squares = differences.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return Math.sqrt(squares / Math.max(1, differences.length - 1) / differences.length);
}
