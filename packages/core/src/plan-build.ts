import { CoppiceError } from "./errors.js";
import { type MoeModel, moeLayers } from "./model.js";
import { type LayerPlan, type Plan, planVersion } from "./plan.js";
import { selectExperts } from "./select-experts.js";

/** A plan for `model` with the given layer plans; without any it is the plan that changes nothing. */
export function createPlan(model: MoeModel, layers: readonly LayerPlan[] = []): Plan {
  return {
    format: "coppice.plan",
    version: planVersion,
    model: { family: model.family, fingerprint: model.fingerprint },
    layers,
  };
}

/**
 * Keeps the `keep` highest-scoring experts of every MoE layer (`selectExperts`).
 * @param scores one row per MoE layer, in layer order, one score per expert: the larger, the better
 * @throws COPPICE_PLAN_KEEP when keep is below the top-k of a layer or above its number of experts, COPPICE_PLAN_GROUPS
 */
export function planFromScores(model: MoeModel, scores: readonly ArrayLike<number>[], keep: number): Plan {
  const layers = moeLayers(model);
  if (scores.length !== layers.length) {
    throw new CoppiceError(
      "COPPICE_PLAN_INVALID",
      `scores have ${scores.length} layers, the model has ${layers.length} MoE layers`,
    );
  }
  return createPlan(
    model,
    layers.map(({ index, feedForward }, i) => ({
      layer: index,
      experts: selectExperts(feedForward, scores[i] as ArrayLike<number>, keep, index),
    })),
  );
}
