import {
  CoppiceError,
  definePlugin,
  type LayerStatistics,
  type MergeRequest,
  type MoeLayer,
  type Rng,
  selectExperts,
} from "@coppice/core";
import * as v from "valibot";
import { clusterExperts, mostUsed } from "./cluster-experts.js";
import { rowDistances } from "./expert-similarity.js";
import { type AlignOptions, alignOptions, groupMerger } from "./group-merger.js";
import { type ExpertGroup, type WeightingOptions, weightings } from "./group-plan.js";

/** Options of the plugin `average`; by default `weights` is `uniform`, so that no data is needed. */
export interface AverageOptions extends WeightingOptions, AlignOptions {
  /**
   * What experts share that become one: similar rows of the router (`router`), or nothing (`random`).
   * @default "router"
   */
  readonly grouping?: "router" | "random" | undefined;
}

declare module "@coppice/core" {
  interface MergerPlugins {
    average: AverageOptions;
  }
}

/**
 * Plain averaging: experts of a layer whose router rows point the same way form clusters (agglomerative, average linkage,
 * Euclidean distance of the rows at length 1) and become their mean. The row that a cluster keeps is that of its most
 * used member, or without statistics of the member nearest to all others. With random groups it is the baseline that a
 * way of grouping has to beat.
 */
export const average = definePlugin({
  kind: "merger",
  name: "average",
  contract: 1,
  summary: "Averages experts with similar router rows; needs no data.",
  reference: "https://arxiv.org/abs/2310.01334",
  options: v.strictObject({
    weights: v.optional(v.picklist(weightings), "uniform"),
    ...alignOptions,
    grouping: v.optional(v.picklist(["router", "random"]), "router"),
  }),
  create: ({ weights, align, grouping }) =>
    groupMerger<LayerStatistics | undefined>({
      name: "average",
      weights,
      align,
      needs: { statistics: false, weights: grouping === "router" },
      group: (layer, sums, request) =>
        grouping === "router"
          ? groupByRouter(layer, sums, request)
          : Promise.resolve(groupAtRandom(layer, request.keep, request.rng)),
    }),
});

async function groupByRouter(
  layer: MoeLayer,
  sums: LayerStatistics | undefined,
  { weights, keep, signal }: MergeRequest,
): Promise<ExpertGroup[]> {
  if (!weights) {
    throw new CoppiceError("COPPICE_USAGE", "average reads router rows, no weight reader was given");
  }
  const { router, experts } = layer.feedForward;
  const rows = Float64Array.from(await weights.read(router.weight, { ...(signal && { signal }) }));
  const size = rows.length / experts.length;
  for (let from = 0; from < rows.length; from += size) {
    const row = rows.subarray(from, from + size);
    const norm = Math.sqrt(row.reduce((sum, value) => sum + value * value, 0));
    if (norm > 0) for (let i = 0; i < size; i++) row[i] = (row[i] as number) / norm;
  }
  const distances = rowDistances(rows, experts.length);
  const leader = sums ? mostUsed(sums.count) : central(distances);
  const usage = sums?.count ?? new Float64Array(experts.length);
  return clusterExperts(layer, { keep, distances, linkage: "average", usage, leader });
}

/** The member with the least sum of distances to all members; ties go to the lower one. */
function central(distances: readonly (readonly number[])[]): (members: readonly number[]) => number {
  return (members) => {
    const sum = (expert: number) =>
      members.reduce((total, other) => total + (distances[expert]?.[other] as number), 0);
    return members.reduce((best, expert) => (sum(expert) < sum(best) ? expert : best));
  };
}

/** Random leaders, and all others dealt to them in turn. */
function groupAtRandom({ feedForward, index }: MoeLayer, keep: number, rng: Rng): ExpertGroup[] {
  const scores = feedForward.experts.map(() => rng.uniform());
  const leaders = selectExperts(feedForward, scores, keep, index);
  const others = rng.shuffle(feedForward.experts.map((_, i) => i).filter((i) => !leaders.includes(i)));
  return leaders.map((leader, group) => ({
    leader,
    members: [leader, ...others.filter((_, i) => i % keep === group)].sort((a, b) => a - b),
  }));
}
