import { type MoeModel, moeLayers, selectExperts, withTopK } from "@coppice/core";

/**
 * Refuses numbers of experts that some layer cannot be left with, before any work that may take long.
 * @param topK of the plans to come; default the model's own
 * @throws COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS
 */
export function checkKeepFits(model: MoeModel, keep: number, topK?: number): void {
  for (const layer of moeLayers(model)) {
    const { index, feedForward } = withTopK(layer, topK);
    selectExperts(feedForward, new Float64Array(feedForward.experts.length), keep, index);
  }
}
