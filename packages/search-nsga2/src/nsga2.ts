import {
  type Candidate,
  definePlugin,
  highest,
  modelSize,
  type Rng,
  type Scored,
  type SearchContext,
} from "@coppice/core";
import type { FrontObjective, FrontStrategy, SearchFront } from "@coppice/search";
import * as v from "valibot";
import { isBetterPlaced, type Placed, type Solution, survivors } from "./domination.js";
import { ExpertSpace, type Genome, unusable } from "./expert-space.js";
import { FrontArchive } from "./front-archive.js";
import { child, mutate, randomGenome } from "./variation.js";

/** Options of the plugin `nsga2`. */
export interface Nsga2Options {
  /** Fewest experts that a layer keeps. */
  keep: number;
  /** Most experts that a layer keeps. Default: all of them. */
  most?: number | undefined;
  /** Most experts per token. Default: the model's own. */
  topK?: number | undefined;
  /** Fewest experts per token. Default 1. */
  leastTopK?: number | undefined;
  /** "layer" (default): layers keep different numbers of experts. "uniform": all the same, as every stock config can say. */
  counts?: "layer" | "uniform" | undefined;
  /** Plans of a generation. Default 24. */
  population?: number | undefined;
  /** Criteria whose plans, of several sizes, start the search. Default "all" that have scores. */
  seeds?: "all" | readonly string[] | undefined;
}

declare module "@coppice/core" {
  interface SearchPlugins {
    nsga2: Nsga2Options;
  }
}

const objectives: readonly FrontObjective[] = [
  { name: "fitness", better: "higher" },
  { name: "bytes", better: "lower" },
  { name: "activeParameters", better: "lower" },
];

/** Sizes at which each criterion's plan is among the first generation. */
const seedSizes = 4;
/** Draws for a plan that was not proposed before: mutations of a child, then random ones; then the space counts as exhausted. */
const redraws = { mutated: 20, random: 200 };

interface Individual extends Solution {
  readonly genome: Genome;
}

interface Proposal {
  readonly genome: Genome;
  readonly origin: string;
}

/** NSGA-II over which and how many experts every layer keeps, and how many a token uses; no plan is proposed twice. */
class Nsga2 implements FrontStrategy {
  readonly #context: SearchContext;
  readonly #rng: Rng;
  readonly #space: ExpertSpace;
  readonly #size: number;
  readonly #archive = new FrontArchive<Individual>();
  readonly #seen = new Set<string>();
  #population: Placed<Individual>[] = [];
  #queue: Proposal[];
  #asked: readonly Proposal[] = [];
  /** Told members of the generation under way. */
  #offspring: Individual[] = [];

  constructor(options: Nsga2Options, context: SearchContext) {
    const { keep, most, topK, leastTopK = 1, counts, population = 24, seeds = "all" } = options;
    this.#context = context;
    this.#rng = context.rng;
    this.#space = new ExpertSpace(context.model, {
      keep,
      most,
      topK,
      leastTopK,
      uniform: counts === "uniform",
    });
    this.#size = population;
    this.#queue = this.#firstGeneration(seeds);
  }

  ask(limit: number): readonly Candidate[] {
    if (this.#queue.length === 0) {
      const all = [...this.#population.map(({ solution }) => solution), ...this.#offspring];
      this.#population = survivors(all, this.#size);
      this.#offspring = [];
      this.#queue = this.#breed();
    }
    this.#asked = this.#queue.splice(0, limit);
    return this.#asked.map(({ genome, origin }) => ({
      plan: this.#space.plan(genome),
      phase: "prune",
      origin,
      // The model as it is belongs to the front, but is nothing to search for.
      ...(this.#space.isWhole(genome) && { probe: true }),
    }));
  }

  tell(results: readonly Scored[]): void {
    results.forEach(({ fitness }, i) => {
      const { genome } = this.#asked[i] as Proposal;
      const { bytes, activeParameters } = modelSize(this.#context.model, this.#space.plan(genome));
      const individual = {
        genome,
        goals: [fitness, -bytes, -activeParameters],
        failed: fitness === Number.NEGATIVE_INFINITY,
      };
      this.#offspring.push(individual);
      this.#archive.add(individual);
    });
  }

  front(): SearchFront {
    const points = this.#archive.members.map(({ genome, goals: [fitness = 0, bytes = 0, active = 0] }) => ({
      plan: this.#space.plan(genome),
      values: [fitness, -bytes, -active],
    }));
    const size = (point: { values: readonly number[] }) => point.values[1] as number;
    return { objectives, points: points.sort((a, b) => size(a) - size(b)) };
  }

  /** The largest plan, those of criteria at several sizes, and random ones. */
  #firstGeneration(seeds: "all" | readonly string[]): Proposal[] {
    const space = this.#space;
    const topK = space.topKs.at(-1) as number;
    const proposals: Proposal[] = [];
    const propose = (origin: string, scores: (row: number) => ArrayLike<number>, share: number) => {
      const subsets = space.experts.map((_, row) => {
        const counts = space.counts(topK, row);
        const count = counts[Math.round(share * (counts.length - 1))] as number;
        return space.select(topK, row, scores(row), count);
      });
      const genome = { topK, subsets };
      if (proposals.length < this.#size && this.#isNew(genome)) proposals.push({ genome, origin });
    };
    const names = seeds === "all" ? [...this.#context.scores.keys()] : seeds;
    propose("largest", (row) => this.#meanRanks(names, row), 1);
    for (let step = 0; step < seedSizes; step++) {
      for (const name of names) {
        const table = this.#scores(name);
        propose(`seed:${name}`, (row) => table[row] as Float64Array, step / seedSizes);
      }
    }
    while (proposals.length < this.#size) {
      const genome = this.#new(() => randomGenome(space, this.#rng), redraws.random);
      if (!genome) break;
      proposals.push({ genome, origin: "random" });
    }
    return proposals;
  }

  /** Children of parents that won binary tournaments by the crowded-comparison order. */
  #breed(): Proposal[] {
    const space = this.#space;
    const proposals: Proposal[] = [];
    while (proposals.length < this.#size) {
      const parents = [this.#parent(), this.#parent()] as const;
      let genome = child(space, this.#rng, parents);
      const fresh =
        (this.#isNew(genome) && genome) ||
        this.#new(() => (genome = mutate(space, this.#rng, genome)), redraws.mutated);
      if (fresh) {
        proposals.push({ genome: fresh, origin: "offspring" });
        continue;
      }
      const random = this.#new(() => randomGenome(space, this.#rng), redraws.random);
      if (!random) break;
      proposals.push({ genome: random, origin: "random" });
    }
    return proposals;
  }

  #parent(): Genome {
    const [a, b] = [this.#rng.pick(this.#population), this.#rng.pick(this.#population)];
    return (isBetterPlaced(b, a) ? b : a).solution.genome;
  }

  #new(draw: () => Genome, draws: number): Genome | undefined {
    for (let i = 0; i < draws; i++) {
      const genome = draw();
      if (this.#isNew(genome)) return genome;
    }
    return undefined;
  }

  /** True for a genome that was not proposed before, which it counts as from now on. */
  #isNew(genome: Genome): boolean {
    const key = this.#space.key(genome);
    if (this.#seen.has(key)) return false;
    this.#seen.add(key);
    return true;
  }

  /** Mean rank of every expert of a layer over criteria; all equal without any. */
  #meanRanks(names: readonly string[], row: number): Float64Array {
    const ranks = new Float64Array(this.#space.experts[row] as number);
    for (const name of names) {
      const scores = this.#scores(name)[row] as Float64Array;
      const order = highest(scores, scores.length).sort(
        (a, b) => (scores[a] as number) - (scores[b] as number),
      );
      order.forEach((expert, rank) => {
        ranks[expert] = (ranks[expert] as number) + rank;
      });
    }
    return ranks;
  }

  #scores(name: string): readonly Float64Array[] {
    const { scores } = this.#context;
    const table = scores.get(name);
    if (!table) {
      const known = [...scores.keys()].join(", ") || "none";
      throw unusable(`seeds names "${name}", for which there are no scores; there are ${known}`);
    }
    return table;
  }
}

const whole = (least: number) => v.pipe(v.number(), v.integer(), v.minValue(least), v.maxValue(1_000_000));

/** Which and how many experts to keep, for several objectives at once. */
export const nsga2 = definePlugin({
  kind: "search",
  name: "nsga2",
  contract: 1,
  summary: "Several objectives at once: fitness, bytes and active parameters (NSGA-II).",
  reference: "https://doi.org/10.1109/4235.996017",
  options: v.strictObject({
    keep: whole(1),
    most: v.optional(whole(1)),
    topK: v.optional(whole(1)),
    leastTopK: v.optional(whole(1)),
    counts: v.optional(v.picklist(["layer", "uniform"])),
    population: v.optional(whole(4)),
    seeds: v.optional(v.union([v.literal("all"), v.array(v.string())])),
  }),
  create: (options, context) => new Nsga2(options, context),
});
