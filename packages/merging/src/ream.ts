import { CoppiceError, definePlugin, type LayerStatistics, selectExperts } from "@coppice/core";
import * as v from "valibot";
import { logitSimilarity, pairs } from "./expert-similarity.js";
import { type AlignOptions, groupMerger, views } from "./group-merger.js";
import { type ExpertGroup, saliency, type WeightingOptions, weightings } from "./group-plan.js";

/** Options of the plugin `ream`; by default `weights` is `saliency` and `align` is `both`, as in the paper. */
export interface ReamOptions extends WeightingOptions, AlignOptions {
  /**
   * Most experts of a group, its centroid included (C of the paper).
   * @default 16
   */
  readonly capacity?: number | undefined;
}

declare module "@coppice/core" {
  interface MergerPlugins {
    ream: ReamOptions;
  }
}

/**
 * REAM (arXiv 2604.04356; SamsungSAILMontreal/ream): the experts of the highest REAP saliency are centroids. From the
 * most to the least salient, each takes in its nearest experts that are still free until its group is full, so that most
 * centroids stay as they are. The distance is `1 - (s_out + s_router) / 2`: s_out the mean over all tokens of
 * `(cos(f_i, f_j) + 1) / 2`, s_router `1 - d_ij / max d` with d the Euclidean distance of the router logits of two
 * experts over all tokens, each at length 1. Members are aligned to their centroid and averaged by their saliency.
 *
 * Differences from the authors' code: statistics come from one pass of the model as it is, where the code runs every
 * layer behind the merged ones before it; cosines are those of the paper, token by token, where the code by default
 * takes the cosine of mean outputs; saliency has the gate weights that the model really multiplies by; weights are
 * compared in full, where the code reduces them to 64 principal components; an expert that was never routed to weighs
 * nothing, where the code lets it weigh as the least of the others.
 */
export const ream = definePlugin({
  kind: "merger",
  name: "ream",
  contract: 1,
  summary: "Packs the experts of low saliency into few groups and merges them with aligned units (REAM).",
  reference: "https://arxiv.org/abs/2604.04356",
  options: v.strictObject({
    weights: v.optional(v.picklist(weightings), "saliency"),
    align: v.optional(v.picklist(["none", ...views]), "both"),
    capacity: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1)), 16),
  }),
  create: ({ weights, align, capacity }) =>
    groupMerger({
      name: "ream",
      weights,
      align,
      needs: { statistics: true, extras: ["outputCosine"] },
      async group({ feedForward, index }, sums, { keep }) {
        const scores = saliency(sums);
        const centroids = selectExperts(feedForward, scores, keep, index);
        checkCapacity(capacity, keep, scores.length, index);
        centroids.sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
        return pack(centroids, expertDistances(sums), capacity);
      },
    }),
});

/** [E][E] */
function expertDistances(sums: LayerStatistics): number[][] {
  const { tokens, outputCosine, count } = sums;
  const experts = count.length;
  // Of vectors at length 1: ‖a - b‖² = 2 - 2 cos(a, b) = 4 (1 - (cos(a, b) + 1) / 2).
  const router = logitSimilarity(sums).map((row) =>
    row.map((value) => 2 * Math.sqrt(Math.max(0, 1 - value))),
  );
  const farthest = Math.max(...router.flat());
  return pairs(experts, (i, j) => {
    const output = ((outputCosine as Float64Array)[i * experts + j] as number) / tokens;
    const gate = farthest > 0 ? 1 - (router[i]?.[j] as number) / farthest : 1;
    return 1 - ((output + 1) / 2 + gate) / 2;
  });
}

/** Ties of distance go to the lower expert. */
function pack(
  centroids: readonly number[],
  distances: readonly (readonly number[])[],
  capacity: number,
): ExpertGroup[] {
  let free = [...distances.keys()].filter((expert) => !centroids.includes(expert));
  return centroids.map((leader) => {
    const to = (expert: number) => distances[leader]?.[expert] as number;
    const taken = [...free].sort((a, b) => to(a) - to(b) || a - b).slice(0, capacity - 1);
    free = free.filter((expert) => !taken.includes(expert));
    return { leader, members: [leader, ...taken].sort((a, b) => a - b) };
  });
}

function checkCapacity(capacity: number, keep: number, experts: number, layer: number): void {
  if (capacity * keep >= experts) return;
  throw new CoppiceError(
    "COPPICE_PLUGIN_OPTIONS",
    `${keep} groups of at most ${capacity} experts do not hold the ${experts} experts of layer ${layer}`,
    {
      hint: `give a capacity of at least ${Math.ceil(experts / keep)}`,
      details: { capacity, keep, experts, layer },
    },
  );
}
