import type { Candidate, Rng, Scored } from "@coppice/core";
import type { SubsetSpace, Subsets } from "./subsets.js";

interface Move {
  readonly subsets: Subsets;
  readonly origin: string;
}

/** Where a local search begins: a plan that is still to be evaluated, or one whose fitness is known. */
export type SwapStart = Move | { readonly subsets: Subsets; readonly fitness: number };

/**
 * Coordinate descent over layers: tries every swap of a kept for a dropped expert in one layer, takes the best when
 * it improves, and goes on to the next layer in a random order; starts again from random experts once no layer
 * improves.
 */
export class SwapSearch {
  readonly #space: SubsetSpace;
  readonly #rng: Rng;
  #current: { subsets: Subsets; fitness: number } | undefined;
  #queue: Move[] = [];
  #asked: Move[] = [];
  #best: { subsets: Subsets; fitness: number } | undefined;
  /** Layers that no swap improved since the last improvement. */
  readonly #settled = new Set<number>();
  #layer = -1;
  /** Layers that drop an expert, so that there is something to swap. */
  readonly #swappable: readonly number[];

  /** @param start default: random experts */
  constructor(space: SubsetSpace, rng: Rng, start?: SwapStart) {
    this.#space = space;
    this.#rng = rng;
    this.#swappable = [...space.experts.keys()].filter(
      (layer) => (space.experts[layer] as number) > space.keep,
    );
    if (start && "fitness" in start) this.#current = start;
    else this.#queue = [start ?? this.#randomStart()];
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
    while (this.#swappable.length > 0 && this.#queue.length === 0) {
      const open = this.#swappable.filter((layer) => !this.#settled.has(layer));
      if (open.length === 0) {
        this.#current = undefined;
        this.#settled.clear();
        this.#layer = -1;
        this.#queue = [this.#randomStart()];
        return;
      }
      this.#layer = this.#rng.pick(open);
      this.#queue = this.#swaps(this.#layer);
      if (this.#queue.length === 0) this.#settled.add(this.#layer);
    }
  }

  #swaps(layer: number): Move[] {
    const { subsets } = this.#current as { subsets: Subsets };
    const kept = subsets[layer] as readonly number[];
    const moves = new Map<string, Move>();
    for (const out of kept) {
      for (let into = 0; into < (this.#space.experts[layer] as number); into++) {
        if (kept.includes(into)) continue;
        const subset = this.#swapped(layer, kept, out, into);
        if (subset) moves.set(subset.join(), { subsets: subsets.with(layer, subset), origin: "swap" });
      }
    }
    return this.#rng.shuffle([...moves.values()]);
  }

  /** `kept` with one expert for another, and as many more as the groups of the router then call for. */
  #swapped(layer: number, kept: readonly number[], out: number, into: number): number[] | undefined {
    const subset = [...kept.filter((expert) => expert !== out), into].sort((a, b) => a - b);
    if (this.#space.accepts(layer, subset)) return subset;
    const experts = this.#space.experts[layer] as number;
    const far = 2 * experts;
    const wish = Array.from({ length: experts }, (_, expert) => Number(kept.includes(expert)));
    const near = this.#space.select(layer, wish.with(into, far).with(out, -far), this.#space.keep);
    return near?.includes(into) && !near.includes(out) ? near : undefined;
  }

  #randomStart(): Move {
    return { subsets: this.#space.random(this.#rng), origin: "random" };
  }
}
