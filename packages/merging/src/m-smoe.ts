import { definePlugin, type LayerStatistics, type MoeLayer, selectExperts } from "@coppice/core";
import * as v from "valibot";
import { nearest } from "./cluster-experts.js";
import { logitSimilarity } from "./expert-similarity.js";
import { type AlignOptions, alignOptions, groupMerger } from "./group-merger.js";
import { type ExpertGroup, type WeightingOptions, weightingOptions } from "./group-plan.js";

/** Options of the plugin `m-smoe`. */
export interface MSmoeOptions extends WeightingOptions, AlignOptions {}

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
 * code keeps all of them and lets several rows share an expert. Hidden units are aligned if asked for; the code does so
 * for Switch Transformers and not for Mixtral.
 */
export const mSmoe = definePlugin({
  kind: "merger",
  name: "m-smoe",
  contract: 1,
  summary: "Merges every other expert into the most similar of the most used ones (M-SMoE).",
  reference: "https://arxiv.org/abs/2310.01334",
  options: v.strictObject({ ...weightingOptions, ...alignOptions }),
  create: ({ weights, align }) =>
    groupMerger({
      name: "m-smoe",
      weights,
      align,
      needs: { statistics: true },
      group: async (layer, sums, { keep }) => joinDominant(layer, sums, keep),
    }),
});

/** Ties of usage and of similarity go to the lower expert. */
function joinDominant({ feedForward, index }: MoeLayer, sums: LayerStatistics, keep: number): ExpertGroup[] {
  const dominant = selectExperts(feedForward, sums.count, keep, index);
  const distances = logitSimilarity(sums).map((row) => row.map((value) => 1 - value));
  const members = new Map(dominant.map((leader) => [leader, [leader]]));
  for (let expert = 0; expert < sums.count.length; expert++) {
    if (!members.has(expert)) members.get(nearest(expert, dominant, distances))?.push(expert);
  }
  return [...members].map(([leader, all]) => ({ leader, members: all.sort((a, b) => a - b) }));
}
