import type { Rng, Scored, SearchContext } from "@coppice/core";
import { planFromSubsets, type Subsets, subsetsKey } from "./genome.js";
import { type Layout, seedNames, subsetsFromScores } from "./layout.js";
import { mixSubsets, randomSubsets, swapExperts } from "./operators-prune.js";
import type { Phase, Proposal } from "./phase.js";
import type { DefaultRates } from "./presets.js";
import { fitSurrogate } from "./surrogate.js";

export interface Pruned {
  readonly subsets: Subsets;
  readonly fitness: number;
  /** Those of `Scored`. */
  readonly key: string;
  readonly scores: Float64Array;
}

interface Child {
  readonly subsets: Subsets;
  readonly origin: string;
}

/** Draws without a new plan before the neighbourhood counts as exhausted. */
const redraws = 200;

export interface PruneOptions {
  readonly rates: DefaultRates;
  readonly seeds: "all" | readonly string[];
  readonly evaluations: number;
  /** True to let children race against the last plan that can become a parent: a worse one never does. */
  readonly race: boolean;
  /** Subsets to start from besides the seeds, and where they come from. */
  readonly start?: Child;
  /** Subsets that were evaluated before this phase. */
  readonly known?: readonly Pruned[];
}

/**
 * Prune phase of the default preset: a steady-state search over one subset per group, started from `start`, every
 * criterion's plan, layer-wise mixtures of these and random plans. Of many children drawn, a linear surrogate fitted
 * to all plans so far picks those to evaluate. The same plan is never proposed twice.
 */
export class PrunePhase implements Phase {
  readonly #layout: Layout;
  readonly #rng: Rng;
  readonly #rates: DefaultRates;
  readonly #seen = new Set<string>();
  readonly #ranked: Pruned[] = [];
  readonly #initial: Child[] = [];
  readonly #race: boolean;
  #asked: Child[] = [];
  #left: number;
  /** Plans that were bred since the best one changed. */
  #stale = 0;

  constructor(layout: Layout, context: SearchContext, options: PruneOptions) {
    this.#layout = layout;
    this.#rng = context.rng;
    this.#rates = options.rates;
    this.#left = options.evaluations;
    this.#race = options.race;
    for (const known of options.known ?? []) {
      this.#seen.add(subsetsKey(known.subsets));
      this.#ranked.push(known);
    }
    this.#ranked.sort((a, b) => b.fitness - a.fitness);
    if (options.start) this.#add(options.start);
    const seeds = seedNames(layout, context.scores, options.seeds).map((name) =>
      subsetsFromScores(layout, context.scores.get(name) as readonly Float64Array[]),
    );
    seedNames(layout, context.scores, options.seeds).forEach((name, i) => {
      this.#add({ subsets: seeds[i] as Subsets, origin: `seed:${name}` });
    });
    const size = Math.max(1, Math.round(options.evaluations * options.rates.initShare));
    for (let i = 0; this.#initial.length < size && i < 4 * size; i++) {
      // Random plans are there for the surrogate: it learns nothing of experts that are always or never kept.
      const random = seeds.length < 2 || i % 5 === 4;
      const subsets = random ? randomSubsets(this.#rng, layout) : mixSubsets(this.#rng, seeds);
      this.#add({ subsets, origin: random ? "random" : "mix" });
    }
  }

  /** Plans found so far, best first. */
  get ranked(): readonly Pruned[] {
    return this.#ranked;
  }

  propose(limit: number): Proposal[] {
    const wanted = Math.min(limit, this.#left);
    this.#asked = this.#initial.splice(0, wanted);
    let rival: string | undefined;
    if (this.#asked.length === 0 && wanted > 0 && this.#stale < this.#rates.pruneStale) {
      // Of large batches half, so that whoever evaluates many plans at a time has them.
      const children = Math.max(this.#rates.children, Math.floor(limit / 2));
      this.#asked = this.#breed(Math.min(wanted, children));
      if (this.#race) rival = this.#ranked[this.#rates.population - 1]?.key;
    }
    this.#left -= this.#asked.length;
    return this.#asked.map(({ subsets, origin }) => ({
      plan: planFromSubsets(this.#layout, subsets),
      origin,
      ...(rival !== undefined && { rival }),
    }));
  }

  learn(results: readonly Scored[]): void {
    const before = this.#ranked[0];
    results.forEach(({ fitness, key, scores }, i) => {
      this.#ranked.push({ subsets: (this.#asked[i] as Child).subsets, fitness, key, scores });
    });
    this.#ranked.sort((a, b) => b.fitness - a.fitness);
    this.#stale = this.#ranked[0] === before ? this.#stale + results.length : 0;
  }

  #add(child: Child): void {
    const key = subsetsKey(child.subsets);
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    this.#initial.push(child);
  }

  /** Up to `count` new children: those the surrogate likes best among a pool, some by chance. */
  #breed(count: number): Child[] {
    if (this.#ranked.length === 0) return [];
    const pool = new Map<string, Child>();
    // As many to choose from for every child, however many are bred at a time.
    const size = Math.max(
      count,
      Math.ceil((this.#rates.pool * count) / this.#rates.children),
      this.#rates.pool,
    );
    for (let misses = 0; pool.size < size && misses < redraws; ) {
      // The mutation reaches further when its neighbourhood is used up.
      const child = this.#draw(1 + Math.floor(misses / 50));
      const key = subsetsKey(child.subsets);
      if (this.#seen.has(key) || pool.has(key)) misses++;
      else pool.set(key, child);
    }
    const finite = this.#ranked.filter(({ fitness }) => Number.isFinite(fitness));
    const children = [...pool.values()];
    if (finite.length > 0 && children.length > count) {
      const predict = fitSurrogate(this.#layout, finite);
      const predicted = new Map(children.map((child) => [child, predict(child.subsets)]));
      children.sort((a, b) => (predicted.get(b) as number) - (predicted.get(a) as number));
    }
    const picked: Child[] = [];
    while (picked.length < count && children.length > 0) {
      const at = this.#rng.bernoulli(this.#rates.explore) ? this.#rng.integer(children.length) : 0;
      picked.push(...children.splice(at, 1));
    }
    for (const child of picked) this.#seen.add(subsetsKey(child.subsets));
    return picked;
  }

  #draw(reach: number): Child {
    const crossed = this.#ranked.length > 1 && this.#rng.bernoulli(this.#rates.pruneCrossover);
    const first = this.#parent();
    if (!crossed) return { subsets: this.#mutate(first, reach), origin: "swap" };
    const mixed = mixSubsets(this.#rng, [first, this.#parent()]);
    return this.#rng.bernoulli(0.5)
      ? { subsets: mixed, origin: "crossover" }
      : { subsets: this.#mutate(mixed, reach), origin: "crossover+swap" };
  }

  #mutate(subsets: Subsets, reach: number): number[][] {
    const groups = reach + (this.#rng.bernoulli(this.#rates.moreGroups) ? 1 : 0);
    return swapExperts(this.#rng, this.#layout, subsets, {
      groups: Math.min(this.#layout.groups.length, groups),
      swaps: reach + (this.#rng.bernoulli(this.#rates.moreSwaps) ? 1 : 0),
    });
  }

  /** The better of two uniform draws among the best. */
  #parent(): Subsets {
    const among = Math.min(this.#rates.population, this.#ranked.length);
    const best = Math.min(this.#rng.integer(among), this.#rng.integer(among));
    return (this.#ranked[best] as Pruned).subsets;
  }
}
