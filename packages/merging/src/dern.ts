import {
  checkCollected,
  definePlugin,
  type LayerPlan,
  type LayerStatistics,
  type MlpSpec,
  type MoeLayer,
  matchingStatistics,
  moeLayers,
  selectExperts,
  throwIfAborted,
  withTopK,
} from "@coppice/core";
import * as v from "valibot";
import { countSteps } from "./count-steps.js";
import { placeSegments } from "./dern-segments.js";
import { recombine } from "./dern-units.js";
import { logitSimilarity } from "./expert-similarity.js";
import { views } from "./group-merger.js";
import { featureSource, type UnitView, unitNeeds } from "./unit-features.js";

/** Options of the plugin `dern`. */
export interface DernOptions {
  /**
   * By what hidden units are compared: their `weights`, their `activations` on a sample of tokens, or the mean of both.
   * @default "weights"
   */
  readonly align?: UnitView | undefined;
  /**
   * Least cosine with a unit of a retained expert; segments below it are discarded.
   * @default 0.4
   */
  readonly threshold?: number | undefined;
  /**
   * Retained experts whose units the segments of a dropped expert may join: those whose router logits are most like its
   * own. Time is proportional to it. Default: all.
   */
  readonly candidates?: number | undefined;
}

declare module "@coppice/core" {
  interface MergerPlugins {
    dern: DernOptions;
  }
}

/**
 * DERN, dropping experts and recombining neurons (arXiv 2509.10377; the authors published no code). The experts of the
 * highest n_j Σ g_tj, tokens times gate mass, are retained. Every other expert falls into segments, one per hidden unit:
 * its rows of gate and up and its column of down. A segment joins the most similar unit of all retained experts, or is
 * discarded where its cosine is below a threshold. Each unit becomes a weighted average with what it was joined by: with
 * n the tokens routed to the expert of each member and m the mean magnitude of its activations, rows are weighted by
 * `n / Σ n`, and columns by `n m / Σ n m`. The unit's activations being those of its rows, about `Σ n m / Σ n`, the mean
 * contribution of a member, `(n / Σ n) m` times its column, is what it was.
 *
 * Where the paper leaves things open to us: it clusters the units that a retained expert owns or received down to its
 * width, here its own units are the centres and stay; m is measured on the sample when units are compared by
 * activations, else the product of the norms of the unit's rows stands for it. Segments of experts that were never
 * routed to would weigh nothing and are discarded at once; biases of down stay those of the retained expert.
 */
export const dern = definePlugin({
  kind: "merger",
  name: "dern",
  contract: 1,
  summary: "Drops experts and adds their hidden units to the most similar ones that stay (DERN).",
  reference: "https://arxiv.org/abs/2509.10377",
  options: v.strictObject({
    align: v.optional(v.picklist(views), "weights"),
    threshold: v.optional(v.pipe(v.number(), v.minValue(-1), v.maxValue(1)), 0.4),
    candidates: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))),
  }),
  create: ({ align, threshold, candidates = Number.POSITIVE_INFINITY }) => {
    const needs = { statistics: true, ...unitNeeds(align) };
    return {
      needs,
      async merge(request) {
        const { model, keep, topK } = request;
        const statistics = matchingStatistics(request);
        if (request.statistics) checkCollected(request.statistics, needs, "dern");
        const splits = moeLayers(model).map((layer, i) =>
          split(withTopK(layer, topK), statistics[i] as LayerStatistics, { keep, candidates }),
        );
        const onPair = countSteps(request, {
          stage: "comparing hidden units",
          unit: "pairs of experts",
          total: splits.flatMap(({ reach }) => [...reach.values()]).flat().length,
        });
        const plans: LayerPlan[] = [];
        for (const { layer, sums, retained, reach } of splits) {
          throwIfAborted(request.signal, `recombining experts of layer ${layer.index}`);
          const features = featureSource(align, layer, sums, request);
          const { width } = layer.feedForward.experts[0] as MlpSpec;
          const segments = await placeSegments({ reach, width, threshold, features, onPair });
          const units = retained.map((expert) => recombine(expert, segments, sums.count));
          plans.push({
            layer: layer.index,
            experts: retained,
            ...(units.some((sources) => sources !== null) && { units }),
          });
        }
        return plans;
      },
    };
  },
});

interface Split {
  readonly layer: MoeLayer;
  readonly sums: LayerStatistics;
  readonly retained: readonly number[];
  /** Dropped experts that are split, and the retained ones that their segments may join. */
  readonly reach: ReadonlyMap<number, readonly number[]>;
}

function split(
  layer: MoeLayer,
  sums: LayerStatistics,
  { keep, candidates }: { readonly keep: number; readonly candidates: number },
): Split {
  const { count, gate } = sums;
  const scores = count.map((tokens, expert) => tokens * (gate[expert] as number));
  const retained = selectExperts(layer.feedForward, scores, keep, layer.index);
  const similarity = logitSimilarity(sums);
  const reach = new Map<number, number[]>();
  for (const expert of count.keys()) {
    if (retained.includes(expert) || count[expert] === 0) continue;
    const like = (other: number) => similarity[expert]?.[other] as number;
    reach.set(expert, [...retained].sort((a, b) => like(b) - like(a) || a - b).slice(0, candidates));
  }
  return { layer, sums, retained, reach };
}
