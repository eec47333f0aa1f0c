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
  type Rng,
  selectExperts,
  withTopK,
} from "@coppice/core";
import * as v from "valibot";

/** Options that every baseline has. */
export interface SubsetOptions {
  /** Experts that every MoE layer keeps. */
  keep: number;
  /** Experts per token; absent: the model's own. */
  topK?: number | undefined;
}

export const whole = v.pipe(v.number(), v.integer(), v.minValue(1));

export const subsetOptions = { keep: whole, topK: v.optional(whole) };

/** Kept experts per MoE layer, ascending. */
export type Subsets = readonly (readonly number[])[];

/** The subsets of one model that a search chooses from. */
export class SubsetSpace {
  readonly model: MoeModel;
  readonly keep: number;
  /** Experts of every MoE layer. */
  readonly experts: readonly number[];
  /** With the top-k of the plans. */
  readonly #layers: readonly MoeLayer[];
  /** Groups that every router is left with; undefined where it has no choice of them. */
  readonly #groups: readonly (number | undefined)[];
  readonly #topK: number | undefined;

  /** @throws COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS */
  constructor(model: MoeModel, options: SubsetOptions) {
    const layers = moeLayers(model).map((layer) => withTopK(layer, options.topK));
    this.#groups = layers.map(({ feedForward, index }) => {
      const { experts, router } = feedForward;
      checkKeep(options.keep, experts.length, router.topK, index);
      const chosen = selectExperts(feedForward, new Float64Array(experts.length), options.keep, index);
      return groupsAfter(router, chosen, index)?.count;
    });
    this.model = model;
    this.keep = options.keep;
    this.experts = layers.map((layer) => layer.feedForward.experts.length);
    this.#layers = layers;
    this.#topK = options.topK;
  }

  random(rng: Rng): Subsets {
    return this.experts.map((experts, row) => {
      const subset = rng.sample(experts, this.keep).sort((a, b) => a - b);
      if (this.accepts(row, subset)) return subset;
      const kept = Array.from({ length: experts }, (_, expert) => (subset.includes(expert) ? 1 : 0));
      return this.select(row, kept, this.keep) as number[];
    });
  }

  /** The highest-scoring experts of every layer, as far as its router can work with them. */
  best(scores: readonly ArrayLike<number>[]): Subsets {
    return this.#layers.map(({ feedForward, index }, i) =>
      selectExperts(feedForward, scores[i] as ArrayLike<number>, this.keep, index),
    );
  }

  /**
   * The `count` highest-scoring experts of the `row`-th layer with experts, as far as its router can work with them;
   * undefined when fewer than the top-k, or when no subset of that size leaves as many groups as `keep` experts do.
   */
  select(row: number, scores: ArrayLike<number>, count: number): number[] | undefined {
    const { feedForward, index } = this.#layers[row] as MoeLayer;
    if (count < feedForward.router.topK) return undefined;
    const subset = findExperts(feedForward, scores, count, index);
    return subset && this.accepts(row, subset) ? subset : undefined;
  }

  /**
   * False for a subset that the router of the `row`-th layer with experts cannot work with, or that leaves other groups
   * than `best` does: a config states one number of groups for all layers.
   */
  accepts(row: number, subset: readonly number[]): boolean {
    const { feedForward, index } = this.#layers[row] as MoeLayer;
    if (!feedForward.router.groups) return true;
    try {
      return groupsAfter(feedForward.router, subset, index)?.count === this.#groups[row];
    } catch {
      return false;
    }
  }

  plan(subsets: Subsets): Plan {
    const topK = this.#topK;
    return createPlan(
      this.model,
      this.#layers.map((layer, i) => ({
        layer: layer.index,
        experts: subsets[i] as readonly number[],
        ...(topK !== undefined && { topK }),
      })),
    );
  }
}

/** The scores of `criterion`. @throws COPPICE_PLUGIN_OPTIONS when there are none */
export function scoresOf(
  plugin: string,
  scores: ReadonlyMap<string, readonly Float64Array[]>,
  criterion: string,
): readonly Float64Array[] {
  const found = scores.get(criterion);
  if (found) return found;
  throw new CoppiceError(
    "COPPICE_PLUGIN_OPTIONS",
    `options of search:${plugin} are not usable: criterion is "${criterion}", for which there are no scores; ` +
      `there are ${[...scores.keys()].join(", ") || "none"}`,
  );
}
