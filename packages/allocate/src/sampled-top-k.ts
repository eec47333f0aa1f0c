import { outputChange } from "./output-change.js";
import { type SampleRequest, sampledLayers } from "./sampled-layers.js";
import type { TopKCosts } from "./top-k-choices.js";

/** What the statistics must have for `sampledTopK`. */
export const topKNeeds = { sample: ["logits", "grams"] } as const;

/**
 * What fewer experts per token change in every MoE layer, from a sample of tokens and without running the model: `D_l(k)`
 * as `measureTopK` has it, over all sampled tokens as one sequence. Under a plan its own routing is what is compared with.
 * @throws those of `sampledLayers`
 */
export async function sampledTopK(request: SampleRequest): Promise<TopKCosts[]> {
  const layers = await sampledLayers(request, topKNeeds.sample, "top-k allocation");
  return layers.map((shown) => {
    const { layer } = shown;
    const { topK, order } = layer.feedForward.router;
    const own = shown.route();
    const costs = Array.from({ length: topK }, (_, i) => {
      if (i + 1 === topK || order === "sparsemixer") return 0;
      return Math.sqrt(outputChange(shown, own, shown.route({ topK: i + 1 })).squared);
    });
    return { layer: layer.index, costs };
  });
}
