import {
  CoppiceError,
  checkKeep,
  createPlan,
  type MoeLayer,
  type MoeModel,
  moeLayers,
  type Plan,
  type Rng,
  repairExperts,
  selectExperts,
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
  readonly #topK: number | undefined;

  /** @throws COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS */
  constructor(model: MoeModel, options: SubsetOptions) {
    const layers = moeLayers(model).map((layer): MoeLayer => {
      const { feedForward } = layer;
      const topK = options.topK ?? feedForward.router.topK;
      return { ...layer, feedForward: { ...feedForward, router: { ...feedForward.router, topK } } };
    });
    for (const { feedForward, index } of layers) {
      const { experts, router } = feedForward;
      checkKeep(options.keep, experts.length, router.topK, index);
      selectExperts(feedForward, new Float64Array(experts.length), options.keep, index);
    }
    this.model = model;
    this.keep = options.keep;
    this.experts = layers.map((layer) => layer.feedForward.experts.length);
    this.#layers = layers;
    this.#topK = options.topK;
  }

  random(rng: Rng): Subsets {
    return this.#layers.map(({ feedForward, index }) =>
      repairExperts(feedForward, rng.sample(feedForward.experts.length, this.keep), index),
    );
  }

  /** The highest-scoring experts of every layer, as far as its router can work with them. */
  best(scores: readonly ArrayLike<number>[]): Subsets {
    return this.#layers.map(({ feedForward, index }, i) =>
      selectExperts(feedForward, scores[i] as ArrayLike<number>, this.keep, index),
    );
  }

  /**
   * The `count` highest-scoring experts of the `row`-th layer with experts that its router can work with; undefined when
   * it can work with no subset of that size.
   */
  select(row: number, scores: ArrayLike<number>, count: number): number[] | undefined {
    const { feedForward, index } = this.#layers[row] as MoeLayer;
    try {
      return selectExperts(feedForward, scores, count, index);
    } catch {
      return undefined;
    }
  }

  /** False for a subset whose experts the router of the layer, the `row`-th with experts, cannot work with. */
  accepts(row: number, subset: readonly number[]): boolean {
    const { feedForward, index } = this.#layers[row] as MoeLayer;
    return repairExperts(feedForward, subset, index).every((expert) => subset.includes(expert));
  }

  /** The group of an expert of the `row`-th layer with experts; 0 where its router has none. */
  group(row: number, expert: number): number {
    const { router, experts } = (this.#layers[row] as MoeLayer).feedForward;
    return Math.floor((expert * (router.groups?.count ?? 1)) / experts.length);
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
