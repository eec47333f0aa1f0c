import { CoppiceError, createPlan, type LayerPlan, type MoeModel, moeLayers, type Plan } from "@coppice/core";
import { bounded, unbounded } from "./bounded.js";

/** Decimals of a coefficient in a plan: beyond float32's, and short in a file. */
const decimals = 6;

/** A generation of vectors of this length takes some 100 MB. */
const dimensionLimit = 2 ** 18;

/**
 * The merge coefficients of a plan as one vector: how far each is from 1 for a slot's own expert, from 0 for the others,
 * layer by layer, slot by slot, expert by expert; without bounds, which `plan` maps to ±`bound`.
 */
export class MergeSpace {
  readonly dimension: number;
  /** Where the given plan stands. */
  readonly origin: Float64Array;
  readonly #model: MoeModel;
  readonly #layers: readonly LayerPlan[];
  readonly #experts: ReadonlyMap<number, number>;
  readonly #bound: number;

  /**
   * @param plan valid for the model; its layers are those that are merged
   * @throws COPPICE_PLUGIN_OPTIONS for a plan without layers, beyond the bound, or with too many coefficients
   */
  constructor(model: MoeModel, plan: Plan, bound: number) {
    this.#model = model;
    this.#layers = plan.layers;
    this.#bound = bound;
    this.#experts = new Map(
      moeLayers(model).map(({ index, feedForward }) => [index, feedForward.experts.length]),
    );
    this.dimension = plan.layers.reduce(
      (sum, { layer, experts }) => sum + experts.length * this.#width(layer),
      0,
    );
    if (this.dimension === 0) throw unusable("the plan lists no layer, so there is nothing to merge");
    if (this.dimension > dimensionLimit) {
      throw unusable(
        `the plan has ${this.dimension} merge coefficients, at most ${dimensionLimit} can be searched`,
      );
    }
    this.origin = Float64Array.from(plan.layers.flatMap((entry) => this.#deviations(entry)));
  }

  plan(vector: Float64Array): Plan {
    let at = 0;
    const layers = this.#layers.map((entry): LayerPlan => {
      const merge = entry.experts.map((own) =>
        Array.from({ length: this.#width(entry.layer) }, (_, expert) =>
          rounded((expert === own ? 1 : 0) + bounded(vector[at++] as number, this.#bound)),
        ),
      );
      return { ...entry, merge };
    });
    return createPlan(this.#model, layers);
  }

  #deviations({ layer, experts, merge }: LayerPlan): number[] {
    return experts.flatMap((own, slot) =>
      Array.from({ length: this.#width(layer) }, (_, expert) => {
        const still = expert === own ? 1 : 0;
        const deviation = (merge?.[slot]?.[expert] ?? still) - still;
        if (Math.abs(deviation) <= this.#bound) return unbounded(deviation, this.#bound);
        throw unusable(
          `the plan has a coefficient of ${still + deviation} in layer ${layer}, more than bound=${this.#bound} from ${still}`,
        );
      }),
    );
  }

  #width(layer: number): number {
    return this.#experts.get(layer) as number;
  }
}

export function unusable(message: string): CoppiceError {
  return new CoppiceError("COPPICE_PLUGIN_OPTIONS", `options of search:cma-es are not usable: ${message}`);
}

/** 6 decimals; -0 becomes 0. */
function rounded(value: number): number {
  return Number(value.toFixed(decimals)) + 0;
}
