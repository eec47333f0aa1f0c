import {
  CoppiceError,
  checkKeep,
  createPlan,
  type MoeModel,
  moeLayers,
  type Plan,
  type Rng,
} from "@coppice/core";
import * as v from "valibot";

/** Options that every baseline has. */
export interface SubsetOptions {
  /** Experts that every MoE layer keeps. */
  keep: number;
  /** Experts per token; absent: the model's own. */
  topK?: number | undefined;
}

const whole = v.pipe(v.number(), v.integer(), v.minValue(1));

export const subsetOptions = { keep: whole, topK: v.optional(whole) };

/** Kept experts per MoE layer, ascending. */
export type Subsets = readonly (readonly number[])[];

/** The subsets of one model that a search chooses from. */
export class SubsetSpace {
  readonly model: MoeModel;
  readonly keep: number;
  /** Experts of every MoE layer. */
  readonly experts: readonly number[];
  readonly #topK: number | undefined;

  /** @throws COPPICE_PLAN_KEEP */
  constructor(model: MoeModel, options: SubsetOptions) {
    const layers = moeLayers(model);
    for (const layer of layers) {
      const { experts, router } = layer.feedForward;
      checkKeep(options.keep, experts.length, options.topK ?? router.topK, layer.index);
    }
    this.model = model;
    this.keep = options.keep;
    this.experts = layers.map((layer) => layer.feedForward.experts.length);
    this.#topK = options.topK;
  }

  random(rng: Rng): Subsets {
    return this.experts.map((count) => rng.sample(count, this.keep).sort((a, b) => a - b));
  }

  plan(subsets: Subsets): Plan {
    const topK = this.#topK;
    return createPlan(
      this.model,
      moeLayers(this.model).map((layer, i) => ({
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
