import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { clusterExperts, mostUsed } from "./cluster-experts.js";
import type { Linkage } from "./clusters.js";
import { rowDistances } from "./expert-similarity.js";
import { type AlignOptions, alignOptions, groupMerger } from "./group-merger.js";
import { type WeightingOptions, weightingOptions } from "./group-plan.js";

/** Options of the plugin `hc-smoe`. */
export interface HcSmoeOptions extends WeightingOptions, AlignOptions {
  /**
   * How the distance of clusters follows from those of their members.
   * @default "average"
   */
  readonly linkage?: Linkage | undefined;
}

declare module "@coppice/core" {
  interface MergerPlugins {
    "hc-smoe": HcSmoeOptions;
  }
}

/**
 * HC-SMoE (arXiv 2410.08589; wazenmai/HC-SMoE): experts of a layer whose mean outputs are near form clusters
 * (agglomerative, Euclidean distance of `o_j = mean_t f_j(x_t)` over all tokens, whichever expert they were routed to),
 * and the members of a cluster are averaged by their usage.
 *
 * Differences from the authors' code: of the router rows of a cluster the most used member's stays and the others are
 * cut, where the code keeps all of them and lets several rows share an expert; usage is counted from what the model
 * really chooses, where the code counts the two best experts also of models that choose four.
 */
export const hcSmoe = definePlugin({
  kind: "merger",
  name: "hc-smoe",
  contract: 1,
  summary: "Clusters experts by their mean outputs over all tokens and merges every cluster (HC-SMoE).",
  reference: "https://arxiv.org/abs/2410.08589",
  options: v.strictObject({
    ...weightingOptions,
    ...alignOptions,
    linkage: v.optional(v.picklist(["average", "single", "complete", "ward"]), "average"),
  }),
  create: ({ weights, align, linkage }) =>
    groupMerger({
      name: "hc-smoe",
      weights,
      align,
      needs: { statistics: true, extras: ["everyOutputSum"] },
      async group(layer, { count, tokens, everyOutputSum }, { keep }) {
        const means = (everyOutputSum as Float64Array).map((sum) => sum / tokens);
        const distances = rowDistances(means, count.length);
        return clusterExperts(layer, { keep, distances, linkage, usage: count, leader: mostUsed(count) });
      },
    }),
});
