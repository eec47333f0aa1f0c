import {
  createPlan,
  type LayerPlan,
  type MoeModel,
  moeLayers,
  type Plan,
  Rng,
  repairExperts,
  withTopK,
} from "@coppice/core";

/** Independent uniformly random plans of `keep` experts per layer: the baseline, the same for every strategy. */
export function randomPlans(
  model: MoeModel,
  request: { keep: number; topK: number | undefined; count: number; seed: number },
): Plan[] {
  const { keep, topK, count, seed } = request;
  const rng = Rng.fromSeed(seed);
  return Array.from({ length: count }, () =>
    createPlan(
      model,
      moeLayers(model).map((layer): LayerPlan => {
        const { index, feedForward } = withTopK(layer, topK);
        return {
          layer: index,
          experts: repairExperts(feedForward, rng.sample(feedForward.experts.length, keep), index),
          ...(topK !== undefined && { topK }),
        };
      }),
    ),
  );
}
