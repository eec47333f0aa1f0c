import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { clusterExperts, mostUsed } from "./cluster-experts.js";
import type { Linkage } from "./clusters.js";
import { logitSimilarity } from "./expert-similarity.js";
import { type AlignOptions, alignOptions, groupMerger } from "./group-merger.js";
import { type WeightingOptions, weightingOptions } from "./group-plan.js";

/** Options of the plugin `logit-clusters`. */
export interface LogitClustersOptions extends WeightingOptions, AlignOptions {
  /**
   * How the distance of clusters follows from those of their members, which are no Euclidean ones.
   * @default "average"
   */
  readonly linkage?: Exclude<Linkage, "ward"> | undefined;
}

declare module "@coppice/core" {
  interface MergerPlugins {
    "logit-clusters": LogitClustersOptions;
  }
}

/**
 * Experts of a layer whose router logits go together over the calibration tokens form clusters (agglomerative, distance
 * 1 - (cos + 1) / 2), and every cluster becomes one expert at the router row of its most used member: merging in the
 * manner of UNCURL (arXiv 2409.01483), whose code is not public, with the clustering of HC-SMoE (arXiv 2410.08589).
 */
export const logitClusters = definePlugin({
  kind: "merger",
  name: "logit-clusters",
  contract: 1,
  summary: "Clusters experts by their router logits and merges every cluster (in the manner of UNCURL).",
  reference: "https://arxiv.org/abs/2409.01483",
  options: v.strictObject({
    ...weightingOptions,
    ...alignOptions,
    linkage: v.optional(v.picklist(["average", "single", "complete"]), "average"),
  }),
  create: ({ weights, align, linkage }) =>
    groupMerger({
      name: "logit-clusters",
      weights,
      align,
      needs: { statistics: true },
      async group(layer, sums, { keep }) {
        const distances = logitSimilarity(sums).map((row) => row.map((value) => 1 - value));
        const usage = sums.count;
        return clusterExperts(layer, { keep, distances, linkage, usage, leader: mostUsed(usage) });
      },
    }),
});
