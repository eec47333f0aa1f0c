import { createPlan, moeLayers } from "@coppice/core";

/**
 * A plan that keeps the first half of the experts of every layer.
 * @param {import("@coppice/core").MoeModel} model
 * @param {number} [share] of all others that each of them takes in; absent: nothing is merged
 */
export function keptHalf(model, share) {
  const layers = moeLayers(model).map(({ index: layer, feedForward }) => {
    const all = feedForward.experts.map((_, expert) => expert);
    const experts = all.slice(0, all.length / 2);
    if (share === undefined) return { layer, experts };
    const merge = experts.map((kept) => all.map((expert) => (expert === kept ? 1 : share)));
    return { layer, experts, merge };
  });
  return createPlan(model, layers);
}
