import type { Candidate, Scored, SearchContext, SearchStrategy } from "@coppice/core";
import { type Genome, genomeFromSubsets, planFromGenome, type Subsets, subsetsKey } from "./genome.js";
import { type Layout, seedNames, subsetsFromScores } from "./layout.js";
import { randomSubsets } from "./operators-prune.js";
import { crossRows, drawGates, normalizeRows, perturbEntries, repointRows } from "./operators-published.js";
import type { PublishedRates } from "./presets.js";

export interface PublishedOptions {
  readonly layout: Layout;
  readonly router: "stock" | "mapped";
  readonly seeds: "all" | readonly string[];
  readonly rates: PublishedRates;
  /** Individuals of the prune phase, the initial population and repeated plans included. */
  readonly prune: number;
  /** Individuals of the merge phase, repeated plans included. */
  readonly merge: number;
}

interface Individual {
  readonly genome: Genome;
  /** Accuracy in percent, which the published thresholds are in. */
  readonly points: number;
}

interface Child {
  readonly genome: Genome;
  readonly phase: string;
  readonly origin: string;
}

/** Random subsets drawn for one new initial plan before the space counts as exhausted. */
const drawsPerInit = 1000;

/**
 * EEP as published (arXiv 2407.00945): nothing is dropped from the population, children are proposed even when they
 * equal a known plan (the engine serves those for free), and the phases are counted in individuals.
 */
export class PublishedStrategy implements SearchStrategy {
  readonly #options: PublishedOptions;
  readonly #context: SearchContext;
  readonly #population: Individual[] = [];
  /** Children of the current iteration that were not proposed yet. */
  #queue: Child[];
  #asked: Child[] = [];
  #proposed = 0;

  /** @throws COPPICE_PLUGIN_OPTIONS when a seed has no scores */
  constructor(options: PublishedOptions, context: SearchContext) {
    this.#options = options;
    this.#context = context;
    this.#queue = this.#initial();
  }

  ask(limit: number): readonly Candidate[] {
    const { layout, prune, merge } = this.#options;
    if (this.#queue.length === 0) {
      const left = (this.#merging ? prune + merge : prune) - this.#proposed;
      const children = Math.min(this.#options.rates.children, left);
      const ranked = this.#ranked();
      this.#queue = Array.from({ length: children }, () => this.#breed(ranked));
    }
    this.#asked = this.#queue.splice(0, limit);
    this.#proposed += this.#asked.length;
    return this.#asked.map(({ genome, phase, origin }) => ({
      plan: planFromGenome(layout, genome),
      phase,
      origin,
    }));
  }

  tell(results: readonly Scored[]): void {
    results.forEach(({ accuracy, fitness }, i) => {
      const { genome } = this.#asked[i] as Child;
      this.#population.push({ genome, points: 100 * (accuracy ?? fitness) });
    });
  }

  get #merging(): boolean {
    return this.#proposed >= this.#options.prune;
  }

  #initial(): Child[] {
    const { layout, prune, rates, seeds } = this.#options;
    const { rng, scores } = this.#context;
    const all = layout.groups.map((group) => Array.from({ length: group.experts }, (_, expert) => expert));
    if (prune === 0) {
      // Merging without pruning starts from the model as it is.
      return [{ genome: genomeFromSubsets(layout, all), phase: "merge", origin: "model" }];
    }
    const children: Child[] = [];
    const known = new Set<string>();
    const add = (subsets: Subsets, origin: string): boolean => {
      const key = subsetsKey(subsets);
      if (known.has(key) || children.length >= prune) return false;
      known.add(key);
      children.push({ genome: genomeFromSubsets(layout, subsets), phase: "prune", origin });
      return true;
    };
    for (const name of seedNames(layout, scores, seeds)) {
      add(subsetsFromScores(layout, scores.get(name) as readonly Float64Array[]), `seed:${name}`);
    }
    for (let draws = 0; children.length < Math.min(rates.init, prune) && draws < drawsPerInit; draws++) {
      if (add(randomSubsets(rng, layout), "random")) draws = 0;
    }
    return children;
  }

  /** Best first; equals in random order, as the released code shuffles them. */
  #ranked(): Individual[] {
    return this.#context.rng.shuffle([...this.#population]).sort((a, b) => b.points - a.points);
  }

  #breed(ranked: readonly Individual[]): Child {
    const { layout, rates, router } = this.#options;
    const { rng } = this.#context;
    const merging = this.#merging;
    const stock = router === "stock" || !merging;
    const gates = drawGates(rng, layout.groups.length, rates.groupProbability);
    const crossed = ranked.length > 1 && rng.bernoulli(merging ? rates.mergeCrossover : rates.pruneCrossover);
    let genome: Genome;
    if (crossed) {
      const parents = this.#crossoverParents(ranked);
      const [first, second] = rng.sample(parents.length, 2).map((i) => parents[i] as Individual);
      genome = crossRows(rng, (first as Individual).genome, (second as Individual).genome, gates, {
        fromFirst: rates.fromFirst,
        stock,
      });
    } else {
      genome = rng.pick(this.#mutationParents(ranked)).genome;
    }
    genome = merging
      ? perturbEntries(rng, genome, gates, {
          probability: rates.entryProbability,
          sigma: rates.sigma,
          stock,
        })
      : repointRows(rng, genome, gates, rates.rowProbability);
    if (rng.bernoulli(rates.normalizeProbability)) genome = normalizeRows(genome);
    return {
      genome,
      phase: merging ? "merge" : "prune",
      origin: crossed ? "crossover+mutation" : "mutation",
    };
  }

  #mutationParents(ranked: readonly Individual[]): readonly Individual[] {
    const { parents, mutationWindow } = this.#options.rates;
    // The released code's random index includes the first individual below the cut.
    return ranked.slice(0, parents ?? within(ranked, mutationWindow) + 1);
  }

  #crossoverParents(ranked: readonly Individual[]): readonly Individual[] {
    const { parents, crossoverWindow, crossoverLeast } = this.#options.rates;
    const count = parents ?? Math.max(within(ranked, crossoverWindow), crossoverLeast);
    return ranked.slice(0, Math.max(count, 2));
  }
}

/** How many of `ranked` lie within `points` of the best. */
function within(ranked: readonly Individual[], points: number): number {
  const best = (ranked[0] as Individual).points;
  return ranked.filter((individual) => individual.points >= best - points).length;
}
