import {
  definePlugin,
  type LayerPlan,
  type LayerStatistics,
  type MoeLayer,
  matchingStatistics,
  moeLayers,
  selectExperts,
  throwIfAborted,
} from "@coppice/core";
import * as v from "valibot";
import { type ExpertGroup, groupPlan, type WeightingOptions, weightingOptions } from "./group-plan.js";
import { logitSimilarity } from "./logit-similarity.js";

/** Options of the plugin `m-smoe`. */
export type MSmoeOptions = WeightingOptions;

declare module "@coppice/core" {
  interface MergerPlugins {
    "m-smoe": MSmoeOptions;
  }
}

/**
 * M-SMoE (arXiv 2310.01334; UNITES-Lab/MC-SMoE): the most used experts of every layer are dominant; each other expert
 * joins the dominant one whose router logits are most similar over the calibration tokens, and members are averaged by
 * their usage.
 *
 * Differences from the authors' code: every layer keeps the same number of experts, so that stock runtimes load the
 * result, instead of a threshold over all layers; router rows of the members that are not dominant are cut, where the
 * code keeps all of them and lets several rows share an expert.
 */
export const mSmoe = definePlugin({
  kind: "merger",
  name: "m-smoe",
  contract: 1,
  summary: "Merges every other expert into the most similar of the most used ones (M-SMoE).",
  reference: "https://arxiv.org/abs/2310.01334",
  options: v.strictObject(weightingOptions),
  create: ({ weights }) => ({
    needs: { statistics: true, weights: false },
    async merge(request) {
      const statistics = matchingStatistics(request);
      return moeLayers(request.model).map((layer, i): LayerPlan => {
        throwIfAborted(request.signal, `merging experts of layer ${layer.index}`);
        const sums = statistics[i] as LayerStatistics;
        return groupPlan(sums, joinDominant(layer, sums, request.keep), weights);
      });
    },
  }),
});

/** Ties of usage and of similarity go to the lower expert. */
function joinDominant({ feedForward, index }: MoeLayer, sums: LayerStatistics, keep: number): ExpertGroup[] {
  const dominant = selectExperts(feedForward, sums.count, keep, index);
  const similarity = logitSimilarity(sums);
  const members = new Map(dominant.map((leader) => [leader, [leader]]));
  for (let expert = 0; expert < sums.count.length; expert++) {
    if (members.has(expert)) continue;
    const to = (leader: number) => similarity[expert]?.[leader] as number;
    const nearest = dominant.reduce((best, leader) => (to(leader) > to(best) ? leader : best));
    members.get(nearest)?.push(expert);
  }
  return [...members].map(([leader, all]) => ({ leader, members: all.sort((a, b) => a - b) }));
}
