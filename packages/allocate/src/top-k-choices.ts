import { CoppiceError, type MoeModel, moeLayers } from "@coppice/core";
import type { LayerChoices } from "./allocate.js";

/** What every top-k of one layer costs. */
export interface TopKCosts {
  readonly layer: number;
  /** `costs[k - 1]` is the cost of k experts per token, for k from 1 to the model's own top-k or further. */
  readonly costs: readonly number[];
}

/**
 * The values that the top-k of every MoE layer can take. The budget of their allocation counts experts per token over all
 * layers: L layers with an average of 1.5 have 1.5 L. This is the objective of LExI (arXiv 2509.02753), Σ D_l(k_l)
 * within Σ k_l = B; its authors search with an evolutionary algorithm what dynamic programming finds exactly.
 * A layer whose router always takes the same number (`sparsemixer`) has one choice.
 * @throws COPPICE_PLAN_INVALID when the costs are not of the model's layers
 */
export function topKChoices(model: MoeModel, costs: readonly TopKCosts[]): LayerChoices[] {
  const layers = moeLayers(model);
  return layers.map(({ index, feedForward }, i) => {
    const found = costs[i];
    const { router, experts } = feedForward;
    const most = found?.costs.length ?? 0;
    if (found?.layer !== index || most < router.topK || most > experts.length) {
      throw new CoppiceError(
        "COPPICE_PLAN_INVALID",
        `layer ${index} has top-k ${router.topK} of ${experts.length} experts; its costs have ` +
          `${found ? `${most} values in layer ${found.layer}` : "no such layer"}`,
      );
    }
    const options = found.costs.map((cost, k) => ({ count: k + 1, cost, size: k + 1 }));
    return {
      layer: index,
      options:
        router.order === "sparsemixer" ? options.filter(({ count }) => count === router.topK) : options,
    };
  });
}
