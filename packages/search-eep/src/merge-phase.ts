import type { Rng, Scored, SearchContext } from "@coppice/core";
import { type Genome, genomeFromSubsets, planFromGenome } from "./genome.js";
import type { Layout } from "./layout.js";
import { applySteps, drawSteps, type RowDelta } from "./operators-merge.js";
import type { Phase, Proposal } from "./phase.js";
import type { DefaultRates } from "./presets.js";
import type { Pruned } from "./prune-phase.js";

interface Individual {
  readonly genome: Genome;
  readonly fitness: number;
}

interface Child {
  readonly genome: Genome;
  readonly parent: number;
  readonly steps: readonly RowDelta[];
  readonly origin: string;
}

/** Successful steps that are remembered for recombination. */
const rememberedSteps = 32;

/** Children drawn for one that is new; a step of zero length cannot make one. */
const redraws = 50;

/** Rechenberg's rule: the step size is right when one step in five succeeds. */
const targetSuccess = 0.2;
const adaptation = 0.15;

/**
 * Merge phase of the default preset: normal steps on a few rows of the merge matrices (and of the router maps when
 * they are free) from the best plans so far, the step size adapted by the 1/5 success rule; successful steps are
 * tried again on other parents.
 */
export class MergePhase implements Phase {
  readonly #layout: Layout;
  readonly #rng: Rng;
  readonly #rates: DefaultRates;
  readonly #mapped: boolean;
  readonly #seen = new Set<string>();
  readonly #successes: (readonly RowDelta[])[] = [];
  #parents: Individual[];
  #sigma: number;
  #left: number;
  #asked: Child[] = [];

  constructor(
    layout: Layout,
    context: SearchContext,
    options: {
      rates: DefaultRates;
      mapped: boolean;
      evaluations: number;
      /** Results of the prune phase, best first; none when nothing is pruned. */
      pruned: readonly Pruned[];
    },
  ) {
    this.#layout = layout;
    this.#rng = context.rng;
    this.#rates = options.rates;
    this.#mapped = options.mapped;
    this.#sigma = options.rates.sigma;
    this.#left = options.evaluations;
    this.#parents = options.pruned.slice(0, options.rates.mergeStarts).map(({ subsets, fitness }) => ({
      genome: genomeFromSubsets(layout, subsets),
      fitness,
    }));
  }

  propose(limit: number): Proposal[] {
    this.#asked = [];
    const wanted = Math.min(limit, this.#left);
    if (wanted > 0 && this.#parents.length === 0) {
      const all = this.#layout.groups.map((group) => Array.from({ length: group.experts }, (_, e) => e));
      this.#asked.push({
        genome: genomeFromSubsets(this.#layout, all),
        parent: -1,
        steps: [],
        origin: "model",
      });
    } else {
      while (this.#asked.length < wanted) {
        const child = this.#breed();
        if (!child) break;
        this.#asked.push(child);
      }
    }
    this.#left -= this.#asked.length;
    return this.#asked.map(({ genome, origin }) => ({
      plan: planFromGenome(this.#layout, genome),
      origin,
    }));
  }

  learn(results: readonly Scored[]): void {
    const before = this.#parents;
    const all = [...before];
    results.forEach(({ fitness }, i) => {
      const { genome, parent, steps, origin } = this.#asked[i] as Child;
      all.push({ genome, fitness });
      const from = before[parent];
      if (!from) return;
      const success = fitness > from.fitness;
      if (origin === "step") this.#sigma *= Math.exp(adaptation * ((success ? 1 : 0) - targetSuccess));
      if (success) this.#successes.unshift(steps);
    });
    this.#successes.length = Math.min(this.#successes.length, rememberedSteps);
    this.#parents = all.sort((a, b) => b.fitness - a.fitness).slice(0, this.#rates.mergeParents);
  }

  #breed(): Child | undefined {
    for (let i = 0; i < redraws; i++) {
      // The smaller of two draws: better parents more often.
      const parent = Math.min(
        this.#rng.integer(this.#parents.length),
        this.#rng.integer(this.#parents.length),
      );
      const { genome } = this.#parents[parent] as Individual;
      const again = this.#successes.length > 0 && this.#rng.bernoulli(this.#rates.recombine);
      const steps = again ? this.#rng.pick(this.#successes) : this.#draw(genome);
      const child = applySteps(genome, steps);
      const key = JSON.stringify(child);
      if (this.#seen.has(key)) continue;
      this.#seen.add(key);
      return { genome: child, parent, steps, origin: again ? "recombination" : "step" };
    }
    return undefined;
  }

  #draw(genome: Genome): RowDelta[] {
    const most = genome.length * this.#layout.keep * (this.#mapped ? 2 : 1);
    // Geometric number of rows with the given mean.
    const stop = 1 / Math.max(this.#rates.rowsPerStep, 1);
    let rows = 1;
    while (rows < most && !this.#rng.bernoulli(stop)) rows++;
    return drawSteps(this.#rng, genome, { rows, sigma: this.#sigma, router: this.#mapped });
  }
}
