import { CoppiceError, createPlan, type MoeModel, moeLayers, type Plan, selectExperts } from "@coppice/core";
import type { Allocation } from "./allocate.js";

/**
 * The plan that keeps in every layer as many experts as were allocated to it, those with the highest scores.
 * @param scores one row per MoE layer, one score per expert
 * @throws COPPICE_PLAN_INVALID when the allocation is not of the model's MoE layers, COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS
 */
export function expertPlan(
  model: MoeModel,
  allocation: Allocation,
  scores: readonly ArrayLike<number>[],
): Plan {
  checkLayers(model, allocation);
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }, i) => {
      const count = allocation.layers[i]?.count as number;
      return { layer: index, experts: selectExperts(feedForward, scores[i] ?? [], count, index) };
    }),
  );
}

/**
 * The plan that keeps all experts and gives every layer the top-k that was allocated to it. Stock checkpoints hold one
 * top-k for all layers; the runtime layout holds one per layer.
 * @throws COPPICE_PLAN_INVALID when the allocation is not of the model's MoE layers
 */
export function topKPlan(model: MoeModel, allocation: Allocation): Plan {
  checkLayers(model, allocation);
  return createPlan(
    model,
    moeLayers(model).map(({ index, feedForward }, i) => ({
      layer: index,
      experts: feedForward.experts.map((_, expert) => expert),
      topK: allocation.layers[i]?.count as number,
    })),
  );
}

function checkLayers(model: MoeModel, allocation: Allocation): void {
  const expected = moeLayers(model).map(({ index }) => index);
  const found = allocation.layers.map(({ layer }) => layer);
  if (found.join() === expected.join()) return;
  throw new CoppiceError(
    "COPPICE_PLAN_INVALID",
    `the allocation is for layers ${found.join(", ") || "none"}; the MoE layers are ${expected.join(", ")}`,
  );
}
