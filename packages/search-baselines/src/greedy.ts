import {
  type Candidate,
  definePlugin,
  type Rng,
  type Scored,
  type SearchContext,
  type SearchStrategy,
} from "@coppice/core";
import * as v from "valibot";
import { type SubsetOptions, SubsetSpace, type Subsets, scoresOf, subsetOptions } from "./subsets.js";

/** Options of the plugin `greedy`. */
export interface GreedyOptions extends SubsetOptions {
  /** Criterion whose plan it starts from; absent: random experts. */
  start?: string | undefined;
}

declare module "@coppice/core" {
  interface SearchPlugins {
    greedy: GreedyOptions;
  }
}

interface Move {
  readonly subsets: Subsets;
  readonly origin: string;
}

/**
 * Coordinate descent over layers: tries every swap of a kept for a dropped expert in one layer, takes the best when
 * it improves, and goes on to the next layer in a random order; starts again from random experts once no layer
 * improves.
 */
class Greedy implements SearchStrategy {
  readonly #space: SubsetSpace;
  readonly #rng: Rng;
  #current: { subsets: Subsets; fitness: number } | undefined;
  #queue: Move[];
  #asked: Move[] = [];
  #best: { subsets: Subsets; fitness: number } | undefined;
  /** Layers that no swap improved since the last improvement. */
  readonly #settled = new Set<number>();
  #layer = -1;
  /** Layers that drop an expert, so that there is something to swap. */
  readonly #swappable: readonly number[];

  constructor(options: GreedyOptions, context: SearchContext) {
    this.#space = new SubsetSpace(context.model, options);
    this.#rng = context.rng;
    const { start, keep } = options;
    this.#swappable = [...this.#space.experts.keys()].filter(
      (layer) => (this.#space.experts[layer] as number) > keep,
    );
    this.#queue = [
      start === undefined
        ? this.#randomStart()
        : {
            subsets: this.#space.best(scoresOf("greedy", context.scores, start)),
            origin: `seed:${start}`,
          },
    ];
  }

  ask(limit: number): readonly Candidate[] {
    if (this.#queue.length === 0) this.#advance();
    this.#asked = this.#queue.splice(0, limit);
    return this.#asked.map(({ subsets, origin }) => ({
      plan: this.#space.plan(subsets),
      phase: "prune",
      origin,
    }));
  }

  tell(results: readonly Scored[]): void {
    results.forEach(({ fitness }, i) => {
      const { subsets } = this.#asked[i] as Move;
      if (!this.#current) this.#current = { subsets, fitness };
      else if (fitness > (this.#best ?? this.#current).fitness) this.#best = { subsets, fitness };
    });
  }

  /** Ends the present layer and queues the swaps of the next one, or a new start. */
  #advance(): void {
    if (this.#best) {
      this.#current = this.#best;
      this.#best = undefined;
      this.#settled.clear();
    } else if (this.#layer >= 0) {
      this.#settled.add(this.#layer);
    }
    const open = this.#swappable.filter((layer) => !this.#settled.has(layer));
    if (this.#swappable.length === 0) return;
    if (open.length === 0) {
      this.#current = undefined;
      this.#settled.clear();
      this.#layer = -1;
      this.#queue = [this.#randomStart()];
      return;
    }
    this.#layer = this.#rng.pick(open);
    this.#queue = this.#swaps(this.#layer);
  }

  #swaps(layer: number): Move[] {
    const { subsets } = this.#current as { subsets: Subsets };
    const kept = subsets[layer] as readonly number[];
    const moves: Move[] = [];
    for (const out of kept) {
      for (let into = 0; into < (this.#space.experts[layer] as number); into++) {
        if (kept.includes(into)) continue;
        const subset = [...kept.filter((expert) => expert !== out), into].sort((a, b) => a - b);
        if (!this.#space.accepts(layer, subset)) continue;
        moves.push({ subsets: subsets.with(layer, subset), origin: "swap" });
      }
    }
    return this.#rng.shuffle(moves);
  }

  #randomStart(): Move {
    return { subsets: this.#space.random(this.#rng), origin: "random" };
  }
}

/** Swap-based local search with restarts. */
export const greedy = definePlugin({
  kind: "search",
  name: "greedy",
  contract: 1,
  summary: "Best swap of one expert, layer by layer, until nothing improves.",
  options: v.strictObject({ ...subsetOptions, start: v.optional(v.pipe(v.string(), v.minLength(1))) }),
  create: (options, context) => new Greedy(options, context),
});
