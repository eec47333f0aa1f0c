import {
  CoppiceError,
  checkKeep,
  definePlugin,
  type LayerPlan,
  type LayerStatistics,
  matchingStatistics,
  moeLayers,
  throwIfAborted,
} from "@coppice/core";
import * as v from "valibot";
import { cluster, type Linkage } from "./clusters.js";
import { groupPlan, type WeightingOptions, weightingOptions } from "./group-plan.js";
import { logitSimilarity } from "./logit-similarity.js";

/** Options of the plugin `logit-clusters`. */
export interface LogitClustersOptions extends WeightingOptions {
  /** @default "average" */
  readonly linkage?: Linkage | undefined;
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
    linkage: v.optional(v.picklist(["average", "single", "complete"]), "average"),
  }),
  create: ({ weights, linkage }) => ({
    needs: { statistics: true, weights: false },
    async merge(request) {
      const { model, keep, signal } = request;
      const statistics = matchingStatistics(request);
      return moeLayers(model).map(({ index, feedForward }, i): LayerPlan => {
        throwIfAborted(signal, `merging experts of layer ${index}`);
        const { router, experts } = feedForward;
        checkKeep(keep, experts.length, router.topK, index);
        if (router.groups && keep < experts.length) throw noGroups(index, router.groups.count);
        const sums = statistics[i] as LayerStatistics;
        const distances = logitSimilarity(sums).map((row) => row.map((value) => 1 - value));
        const groups = cluster(distances, keep, linkage).map((members) => ({
          members,
          leader: members.reduce((best, expert) =>
            (sums.count[expert] as number) > (sums.count[best] as number) ? expert : best,
          ),
        }));
        return groupPlan(sums, groups, weights);
      });
    },
  }),
});

function noGroups(layer: number, count: number): CoppiceError {
  return new CoppiceError(
    "COPPICE_PLAN_GROUPS",
    `layer ${layer} routes to ${count} groups of experts, which clusters of logits would tear apart`,
    { hint: "use the merger m-smoe, which leaves as many experts in every group", details: { layer, count } },
  );
}
