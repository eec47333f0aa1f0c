import type { Rng, Scored, SearchContext } from "@coppice/core";
import { planFromSubsets, type Subsets, subsetsKey } from "./genome.js";
import { type Layout, seedNames, subsetsFromScores } from "./layout.js";
import { mixSubsets, randomSubsets, swapExperts } from "./operators-prune.js";
import type { Phase, Proposal } from "./phase.js";
import type { DefaultRates } from "./presets.js";

export interface Pruned {
  readonly subsets: Subsets;
  readonly fitness: number;
}

/** Children drawn for one that is new before the space counts as exhausted. */
const redraws = 200;

/**
 * Prune phase of the default preset: a steady-state search over one subset per group, started from every
 * criterion's plan, layer-wise mixtures of them and random plans; the same plan is never proposed twice.
 */
export class PrunePhase implements Phase {
  readonly #layout: Layout;
  readonly #rng: Rng;
  readonly #rates: DefaultRates;
  readonly #seen = new Set<string>();
  readonly #ranked: Pruned[] = [];
  readonly #initial: { subsets: Subsets; origin: string }[] = [];
  #asked: Subsets[] = [];
  #left: number;

  constructor(
    layout: Layout,
    context: SearchContext,
    options: { rates: DefaultRates; seeds: "all" | readonly string[]; evaluations: number },
  ) {
    this.#layout = layout;
    this.#rng = context.rng;
    this.#rates = options.rates;
    this.#left = options.evaluations;
    const seeds = seedNames(layout, context.scores, options.seeds).map((name) => ({
      subsets: subsetsFromScores(layout, context.scores.get(name) as readonly Float64Array[]),
      origin: `seed:${name}`,
    }));
    const size = Math.max(seeds.length, Math.round(options.evaluations * options.rates.initShare), 1);
    const sources = seeds.map((seed) => seed.subsets);
    for (const seed of seeds) this.#add(seed.subsets, seed.origin);
    for (let i = 0; this.#initial.length < size && i < 4 * size; i++) {
      if (sources.length > 1 && i % 2 === 0) this.#add(mixSubsets(this.#rng, sources), "mix");
      else this.#add(randomSubsets(this.#rng, layout), "random");
    }
  }

  /** Plans found so far, best first. */
  get ranked(): readonly Pruned[] {
    return this.#ranked;
  }

  propose(limit: number): Proposal[] {
    const proposals: Proposal[] = [];
    this.#asked = [];
    while (proposals.length < Math.min(limit, this.#left)) {
      const child = this.#initial.shift() ?? this.#breed();
      if (!child) break;
      this.#asked.push(child.subsets);
      proposals.push({ plan: planFromSubsets(this.#layout, child.subsets), origin: child.origin });
    }
    this.#left -= proposals.length;
    return proposals;
  }

  learn(results: readonly Scored[]): void {
    results.forEach(({ fitness }, i) => {
      this.#ranked.push({ subsets: this.#asked[i] as Subsets, fitness });
    });
    this.#ranked.sort((a, b) => b.fitness - a.fitness);
  }

  #add(subsets: Subsets, origin: string): void {
    const key = subsetsKey(subsets);
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    this.#initial.push({ subsets, origin });
  }

  #breed(): { subsets: Subsets; origin: string } | undefined {
    if (this.#ranked.length === 0) return undefined;
    for (let i = 0; i < redraws; i++) {
      const child = this.#draw(1 + i / 10);
      const key = subsetsKey(child.subsets);
      if (this.#seen.has(key)) continue;
      this.#seen.add(key);
      return child;
    }
    return undefined;
  }

  /** A child; `reach` widens the mutation when its neighbourhood is used up. */
  #draw(reach: number): { subsets: Subsets; origin: string } {
    const crossed = this.#ranked.length > 1 && this.#rng.bernoulli(this.#rates.pruneCrossover);
    const first = this.#parent();
    const subsets = crossed ? mixSubsets(this.#rng, [first, this.#parent()]) : first;
    const groups = Math.min(this.#layout.groups.length, Math.floor(reach) + this.#more());
    const swaps = Math.floor(reach) + this.#more();
    return {
      subsets: swapExperts(this.#rng, this.#layout, subsets, { groups, swaps }),
      origin: crossed ? "crossover+swap" : "swap",
    };
  }

  #more(): number {
    return this.#rng.bernoulli(this.#rates.moreSwaps) ? 1 : 0;
  }

  #parent(): Subsets {
    const among = Math.min(this.#rates.population, this.#ranked.length);
    let best = among;
    for (let i = 0; i < this.#rates.tournament; i++) best = Math.min(best, this.#rng.integer(among));
    return (this.#ranked[best] as Pruned).subsets;
  }
}
