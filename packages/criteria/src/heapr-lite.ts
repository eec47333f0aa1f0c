import { type Criterion, definePlugin, type ScoreRequest } from "@coppice/core";
import * as v from "valibot";
import { readExperts } from "./expert-weights.js";
import { collectedLayers, type LayerWith } from "./layer-statistics.js";

export interface HeaprLiteOptions {
  /** `mean` over the routed tokens, as HEAPr has it, or their `sum`, which busy experts win. @default "mean" */
  readonly over?: "mean" | "sum" | undefined;
}

declare module "@coppice/core" {
  interface CriterionPlugins {
    "heapr-lite": HeaprLiteOptions;
  }
}

const needs: Criterion["needs"] = { statistics: true, weights: true, extras: ["unitSquares"] };

/**
 * Scores of all hidden units ("atomic experts"): `s_ji = (1 / n_j) Σ_{t routed to j} a_ji(x_t)² · ‖w_ji‖₂²`, with a the unit,
 * what `down` multiplies, and w its column of `down`: the mean square of what the unit adds to its expert's output, before
 * that is weighted. HEAPr (arXiv 2509.22299) has `w_jiᵀ M_j w_ji` in place of `‖w_ji‖²`, M_j being the second moment of the
 * loss's gradient with respect to that output; here M_j is the identity, which needs no gradient.
 * @returns one array per MoE layer, [E, width]; 0 where an expert serves no token
 * @throws COPPICE_STATS_MISSING without `unitSquares`, COPPICE_STATS_MODEL, COPPICE_USAGE without weights
 */
export async function hiddenUnitScores(
  request: Omit<ScoreRequest, "rng">,
  { over = "mean" }: HeaprLiteOptions = {},
): Promise<Float64Array[]> {
  const layers = collectedLayers(request, needs, "heapr-lite") as readonly LayerWith<"unitSquares">[];
  const scores = layers.map(({ unitSquares }) => unitSquares.slice());
  await readExperts(
    request,
    "heapr-lite",
    ({ down }) => [down],
    (down, row, expert) => {
      const { count } = layers[row] as LayerWith<"unitSquares">;
      const width = (scores[row] as Float64Array).length / count.length;
      const own = (scores[row] as Float64Array).subarray(expert * width, (expert + 1) * width);
      const norms = columnSquares(down, width);
      const tokens = over === "sum" ? 1 : count[expert] || 1;
      for (let unit = 0; unit < width; unit++) {
        own[unit] = ((own[unit] as number) * (norms[unit] as number)) / tokens;
      }
    },
  );
  return scores;
}

/**
 * HEAPr without gradients (arXiv 2509.22299): an expert scores the sum of `hiddenUnitScores` over its units, which would be
 * its mean squared output if units were uncorrelated. Needs statistics with `unitSquares`, and weights. An expert that
 * serves no token scores 0.
 */
export const heaprLite = definePlugin({
  kind: "criterion",
  name: "heapr-lite",
  contract: 1,
  summary:
    "Scores experts by the energy of their hidden units, from squares and columns of down (HEAPr without gradients).",
  reference: "https://arxiv.org/abs/2509.22299",
  options: v.strictObject({ over: v.optional(v.picklist(["mean", "sum"]), "mean") }),
  create: (options): Criterion => ({
    needs,
    async score(request) {
      const units = await hiddenUnitScores(request, options);
      return units.map((scores, row) => {
        const experts = request.statistics?.layers[row]?.count.length ?? 0;
        const width = scores.length / experts;
        return Float64Array.from({ length: experts }, (_, expert) =>
          scores.subarray(expert * width, (expert + 1) * width).reduce((sum, score) => sum + score, 0),
        );
      });
    },
  }),
});

/** Sums of squares of the columns of a matrix [rows, width]. */
function columnSquares(matrix: Float32Array, width: number): Float64Array {
  const sums = new Float64Array(width);
  for (let start = 0; start < matrix.length; start += width) {
    for (let i = 0; i < width; i++) sums[i] = (sums[i] as number) + (matrix[start + i] as number) ** 2;
  }
  return sums;
}
