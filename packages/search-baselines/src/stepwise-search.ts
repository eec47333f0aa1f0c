import type { Candidate, Rng, Scored } from "@coppice/core";
import type { SubsetSpace, Subsets } from "./subsets.js";

export interface StepwiseOptions {
  /** `backward`: from all experts down; `forward`: from as few as the routers can work with up. */
  readonly direction: "forward" | "backward";
  /** Per MoE layer and expert; the larger, the sooner it is added and the later it is dropped. Absent: by chance. */
  readonly scores?: readonly ArrayLike<number>[] | undefined;
  /** Most experts that are compared in one step. */
  readonly width?: number | undefined;
  /** Plans that all steps together may take. */
  readonly evaluations: number;
}

/** One way to take the present step. */
interface Step {
  readonly subsets: Subsets;
  fitness: number | undefined;
}

/**
 * Stepwise selection, layer by layer in rounds: every round visits the layers in random order and drops from each (adds
 * to each) the expert whose loss costs least (whose addition helps most), until all layers hold `keep`. Routers
 * with groups drop and add one expert of every group at once.
 */
export class StepwiseSearch {
  readonly #space: SubsetSpace;
  readonly #rng: Rng;
  readonly #backward: boolean;
  /** Per MoE layer and expert, in [0, 1): the order in which experts are worth keeping. */
  readonly #ranks: readonly Float64Array[];
  readonly #width: number;
  #subsets: Subsets;
  /** Fitness of `#subsets` where it was measured. */
  #fitness: number | undefined;
  /** Layers that this round still visits. */
  #round: number[] = [];
  #steps: Step[] = [];
  #asked: Step[] = [];

  constructor(space: SubsetSpace, rng: Rng, options: StepwiseOptions) {
    this.#space = space;
    this.#rng = rng;
    this.#backward = options.direction === "backward";
    this.#ranks = space.experts.map((experts, row) => {
      const scores = options.scores?.[row];
      const sorted = scores ? ascending(scores) : rng.sample(experts, experts);
      const ranks = new Float64Array(experts);
      sorted.forEach((expert, rank) => {
        ranks[expert] = rank / experts;
      });
      return ranks;
    });
    this.#subsets = space.experts.map((experts, row) => {
      const all = Array.from({ length: experts }, (_, expert) => expert);
      return this.#backward ? all : this.#fewest(row);
    });
    this.#width = this.#affordableWidth(options);
  }

  /** What the steps led to, with its fitness; undefined before the end. */
  get result(): { subsets: Subsets; fitness: number } | undefined {
    const done = this.#isFinal(this.#subsets) && this.#steps.length === 0;
    return done && this.#fitness !== undefined
      ? { subsets: this.#subsets, fitness: this.#fitness }
      : undefined;
  }

  ask(limit: number): readonly Candidate[] {
    if (this.#steps.every(({ fitness }) => fitness !== undefined)) this.#advance();
    this.#asked = this.#steps.filter(({ fitness }) => fitness === undefined).slice(0, limit);
    return this.#asked.map(({ subsets }) => ({
      plan: this.#space.plan(subsets),
      phase: "prune",
      origin: this.#backward ? "backward" : "forward",
      ...(!this.#isFinal(subsets) && { probe: true }),
    }));
  }

  tell(results: readonly Scored[]): void {
    results.forEach(({ fitness }, i) => {
      (this.#asked[i] as Step).fitness = fitness;
    });
  }

  /** Takes the best of the measured steps and lists those of the next layer, up to one where there is a choice. */
  #advance(): void {
    const [first, ...others] = this.#steps;
    if (first) {
      const best = others.reduce((a, b) => ((b.fitness as number) > (a.fitness as number) ? b : a), first);
      this.#subsets = best.subsets;
      this.#fitness = best.fitness;
    }
    this.#steps = [];
    while (!this.#isFinal(this.#subsets)) {
      const open = (row: number) => this.#subsets[row]?.length !== this.#space.keep;
      if (!this.#round.some(open)) this.#round = this.#rng.shuffle([...this.#subsets.keys()].filter(open));
      const row = this.#round.shift() as number;
      if (!open(row)) continue;
      const ways = this.#ways(row).map((subset) => this.#subsets.with(row, subset));
      if (ways.length > 1) {
        this.#steps = ways.map((subsets) => ({ subsets, fitness: undefined }));
        return;
      }
      this.#subsets = ways[0] as Subsets;
      this.#fitness = undefined;
    }
    if (this.#fitness === undefined) this.#steps = [{ subsets: this.#subsets, fitness: undefined }];
  }

  /** The subsets that one step in a layer may lead to, those that the ranks recommend first. */
  #ways(row: number): readonly number[][] {
    const kept = this.#subsets[row] as readonly number[];
    const ranks = this.#ranks[row] as Float64Array;
    const movable = [...ranks.keys()]
      .filter((expert) => kept.includes(expert) === this.#backward)
      .sort((a, b) => ((ranks[a] as number) - (ranks[b] as number)) * (this.#backward ? 1 : -1));
    const change = this.#backward ? -1 : 1;
    for (let count = kept.length + change; count !== this.#space.keep + change; count += change) {
      const ways = new Map<string, number[]>();
      for (const expert of movable) {
        const subset = this.#space.select(row, this.#preference(row, kept, expert), count);
        if (!subset || !this.#isStep(kept, subset, expert)) continue;
        ways.set(subset.join(), subset);
        if (ways.size === this.#width) break;
      }
      if (ways.size > 0) return [...ways.values()];
    }
    // No step keeps to what was chosen so far: the nearest subset that the router can work with.
    return [this.#space.select(row, this.#preference(row, kept), this.#space.keep) as number[]];
  }

  /** Scores by which a step keeps `kept` as far as it can, but for dropping or adding `moved`. */
  #preference(row: number, kept: readonly number[], moved?: number): Float64Array {
    const ranks = this.#ranks[row] as Float64Array;
    const far = 4 * ranks.length;
    return ranks.map((rank, expert) => {
      if (expert === moved) return this.#backward ? 0 : far / 2;
      return kept.includes(expert) ? far + rank : rank - (this.#backward ? far ** 2 : 0);
    });
  }

  #isStep(kept: readonly number[], subset: readonly number[], moved: number): boolean {
    if (this.#backward) return !subset.includes(moved) && subset.every((expert) => kept.includes(expert));
    return subset.includes(moved) && kept.every((expert) => subset.includes(expert));
  }

  #isFinal(subsets: Subsets): boolean {
    return subsets.every((subset) => subset.length === this.#space.keep);
  }

  /** The best-ranked experts of the smallest number that the router can work with. */
  #fewest(row: number): number[] {
    for (let count = 1; count < this.#space.keep; count++) {
      const subset = this.#space.select(row, this.#ranks[row] as Float64Array, count);
      if (subset) return subset;
    }
    return this.#space.select(row, this.#ranks[row] as Float64Array, this.#space.keep) as number[];
  }

  /** The largest width whose steps fit into the evaluations; 1, where nothing is compared, always does. */
  #affordableWidth({ width, evaluations }: StepwiseOptions): number {
    const choices = this.#subsets.flatMap((subset, row) => {
      const steps = Math.abs(subset.length - this.#space.keep);
      const experts = this.#space.experts[row] as number;
      const first = this.#backward ? subset.length : experts - subset.length;
      return Array.from({ length: steps }, (_, step) => first - step);
    });
    const measured = (most: number, count: number) => (Math.min(most, count) > 1 ? Math.min(most, count) : 0);
    // The plan at the end costs one more where the last step has nothing to compare.
    const cost = (most: number) =>
      choices.reduce((sum, count) => sum + measured(most, count), most === 1 || choices.includes(1) ? 1 : 0);
    let affordable = Math.min(width ?? Number.POSITIVE_INFINITY, Math.max(1, ...choices));
    while (affordable > 1 && cost(affordable) > evaluations) affordable--;
    return affordable;
  }
}

/** Indices by value, the smallest first; of equals the higher index. */
function ascending(values: ArrayLike<number>): number[] {
  const order = Array.from(values, (_, i) => i);
  return order.sort((a, b) => (values[a] as number) - (values[b] as number) || b - a);
}
