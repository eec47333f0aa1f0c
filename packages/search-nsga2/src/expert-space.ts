import {
  CoppiceError,
  checkKeep,
  createPlan,
  findExperts,
  groupsAfter,
  type MoeLayer,
  type MoeModel,
  moeLayers,
  type Plan,
  withTopK,
} from "@coppice/core";

export interface SpaceOptions {
  /** Fewest experts that a layer keeps. */
  readonly keep: number;
  /** Most experts that a layer keeps; absent: all of them. */
  readonly most?: number | undefined;
  /** Most experts per token; absent: the model's own. */
  readonly topK?: number | undefined;
  /** Fewest experts per token. */
  readonly leastTopK: number;
  /** Every layer keeps as many experts, of as many groups. */
  readonly uniform: boolean;
}

/** What is varied: the experts that every MoE layer keeps, ascending, and how many of them a token uses. */
export interface Genome {
  readonly topK: number;
  readonly subsets: readonly (readonly number[])[];
}

/** The plans of one model that keep different numbers of experts, as far as its routers can work with them. */
export class ExpertSpace {
  readonly options: SpaceOptions;
  /** Experts of every MoE layer. */
  readonly experts: readonly number[];
  /** Experts per token to choose from, ascending. */
  readonly topKs: readonly number[];
  readonly #model: MoeModel;
  readonly #layers: readonly MoeLayer[];
  /** Per experts per token and layer: the numbers of experts that are possible, ascending. */
  readonly #counts = new Map<number, readonly (readonly number[])[]>();

  /** @throws COPPICE_PLAN_KEEP, COPPICE_PLUGIN_OPTIONS */
  constructor(model: MoeModel, options: SpaceOptions) {
    this.options = options;
    this.#model = model;
    this.#layers = moeLayers(model);
    if (this.#layers.length === 0)
      throw unusable("the model has no MoE layer, so there is nothing to search");
    this.experts = this.#layers.map(({ feedForward }) => feedForward.experts.length);
    const { keep, most, leastTopK } = options;
    const own = this.#layers.map(({ feedForward }) => feedForward.router.topK);
    const highestTopK = options.topK ?? Math.max(...own);
    if (leastTopK > highestTopK) {
      throw unusable(
        `leastTopK is ${leastTopK}, more than the ${highestTopK} experts that a token uses at most`,
      );
    }
    if (most !== undefined && most < keep) throw unusable(`most is ${most}, less than keep=${keep}`);
    this.#layers.forEach(({ index, feedForward }, row) => {
      const fewest = this.#layerTopK(row, leastTopK);
      const all = feedForward.experts.length;
      checkKeep(keep, all, Math.min(keep, fewest), index);
      checkKeep(Math.min(most ?? all, all), all, fewest, index);
    });
    for (let topK = leastTopK; topK <= highestTopK; topK++) {
      const counts = this.#possibleCounts(topK);
      if (counts.every(({ length }) => length > 0)) this.#counts.set(topK, counts);
    }
    this.topKs = [...this.#counts.keys()];
    if (this.topKs.length > 0) return;
    throw unusable(
      `the groups of the routers leave no number of experts from ${keep} to ${most ?? Math.max(...this.experts)} ` +
        `${options.uniform ? "that every layer could keep" : "in some layer"}`,
    );
  }

  /** Numbers of experts that a layer can keep when a token uses `topK`, ascending. */
  counts(topK: number, row: number): readonly number[] {
    return this.#counts.get(topK)?.[row] as readonly number[];
  }

  /** The `count`, one of `counts`, experts of a layer with the highest scores that its router can work with, ascending. */
  select(topK: number, row: number, scores: ArrayLike<number>, count: number): number[] {
    return this.#select(topK, row, scores, count) as number[];
  }

  plan({ topK, subsets }: Genome): Plan {
    return createPlan(
      this.#model,
      this.#layers.map(({ index, feedForward }, row) => {
        const used = this.#layerTopK(row, topK);
        return {
          layer: index,
          experts: subsets[row] as readonly number[],
          ...(used !== feedForward.router.topK && { topK: used }),
        };
      }),
    );
  }

  /** True for the genome that changes nothing. */
  isWhole({ topK, subsets }: Genome): boolean {
    return this.#layers.every(
      ({ feedForward: { router, experts } }, row) =>
        subsets[row]?.length === experts.length && this.#layerTopK(row, topK) === router.topK,
    );
  }

  /** Text that is equal exactly when two genomes are the same plan. */
  key({ topK, subsets }: Genome): string {
    return subsets.map((subset, row) => `${this.#layerTopK(row, topK)}:${subset}`).join(";");
  }

  /** SparseMixer always uses its own number; without the option `topK` no layer uses more than its own. */
  #layerTopK(row: number, topK: number): number {
    const { router } = (this.#layers[row] as MoeLayer).feedForward;
    if (router.order === "sparsemixer") return router.topK;
    return this.options.topK === undefined ? Math.min(topK, router.topK) : topK;
  }

  #layerWith(row: number, topK: number): MoeLayer {
    return withTopK(this.#layers[row] as MoeLayer, this.#layerTopK(row, topK));
  }

  #possibleCounts(topK: number): readonly (readonly number[])[] {
    const { keep, most, uniform } = this.options;
    const counts = this.experts.map((experts, row) => {
      const scores = new Float64Array(experts);
      const first = Math.max(keep, this.#layerTopK(row, topK));
      return Array.from(
        { length: Math.min(most ?? experts, experts) - first + 1 },
        (_, i) => first + i,
      ).filter((count) => this.#select(topK, row, scores, count) !== undefined);
    });
    if (!uniform) return counts;
    const common = (counts[0] ?? []).filter(
      (count) =>
        counts.every((others) => others.includes(count)) &&
        new Set(this.experts.map((_, row) => this.#groupsLeft(topK, row, count))).size === 1,
    );
    return counts.map(() => common);
  }

  /** How many groups the router has when a layer keeps `count` experts; undefined when it has no choice of them. */
  #groupsLeft(topK: number, row: number, count: number): number | undefined {
    const { feedForward, index } = this.#layerWith(row, topK);
    const experts = this.select(topK, row, new Float64Array(this.experts[row] as number), count);
    return groupsAfter(feedForward.router, experts, index)?.count;
  }

  #select(topK: number, row: number, scores: ArrayLike<number>, count: number): number[] | undefined {
    const { feedForward, index } = this.#layerWith(row, topK);
    return findExperts(feedForward, scores, count, index);
  }
}

export function unusable(message: string): CoppiceError {
  return new CoppiceError("COPPICE_PLUGIN_OPTIONS", `options of search:nsga2 are not usable: ${message}`);
}
