import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { extrasCriterion } from "./layer-statistics.js";
import { scaledMoment } from "./scaled-moment.js";

export interface SuperExpertsOptions {
  /** Powers of the scores of all other experts, as in `moments`. @default 0, 1, 1, which is REAP */
  readonly a?: number | undefined;
  readonly b?: 0 | 1 | 2 | undefined;
  readonly c?: 0 | 1 | 2 | undefined;
  /** Share of all experts of the model below whose peaks a super expert must not be. @default 0.995 */
  readonly quantile?: number | undefined;
  /** Share of the model's highest peak that a super expert must exceed. @default 0.1 */
  readonly share?: number | undefined;
  /** Share of the layers, from the first, in which there are super experts. @default 0.75 */
  readonly depth?: number | undefined;
}

declare module "@coppice/core" {
  interface CriterionPlugins {
    "super-experts": SuperExpertsOptions;
  }
}

const power = v.optional(v.picklist([0, 1, 2]), 1);
const share = v.pipe(v.number(), v.minValue(0), v.maxValue(1));

/**
 * Protects super experts (arXiv 2507.23279): those whose outputs hold values far beyond all others, and without which
 * models break. They are the experts whose peak, the largest |f| of any routed token, exceeds both the 99.5th
 * percentile of all experts and a tenth of the highest peak, in the first three quarters of the layers, by the rule of
 * the code of REAP (CerebrasResearch/reap). They score above all other experts of the model, by their peaks; the others
 * score as in `moments`, by default REAP. Needs statistics with `peak`.
 */
export const superExperts = definePlugin({
  kind: "criterion",
  name: "super-experts",
  contract: 1,
  summary: "Scores experts by REAP or another moment, and those with outstanding activations above all.",
  reference: "https://arxiv.org/abs/2507.23279",
  options: v.strictObject({
    a: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(1)), 0),
    b: power,
    c: power,
    quantile: v.optional(share, 0.995),
    share: v.optional(share, 0.1),
    depth: v.optional(share, 0.75),
  }),
  create: ({ quantile, share, depth, ...powers }) =>
    extrasCriterion("super-experts", ["peak"], (layers) => {
      const scores = layers.map((layer) => scaledMoment(layer, powers));
      const peaks = layers.map(({ peak }) => peak);
      const bar = threshold(peaks, quantile, share);
      const top = largest(scores);
      const scale = (top || 1) / (largest(peaks) || 1);
      peaks.slice(0, Math.floor(layers.length * depth)).forEach((row, i) => {
        row.forEach((peak, expert) => {
          if (peak > bar) (scores[i] as Float64Array)[expert] = top + peak * scale;
        });
      });
      return scores;
    }),
});

/** The quantile between the two nearest values, as `torch.quantile` has it, or a share of the largest. */
function threshold(peaks: readonly Float64Array[], quantile: number, share: number): number {
  const sorted = Float64Array.from(peaks.flatMap((row) => [...row])).sort();
  const at = quantile * (sorted.length - 1);
  const below = sorted[Math.floor(at)] as number;
  const above = sorted[Math.ceil(at)] as number;
  return Math.max(below + (above - below) * (at - Math.floor(at)), share * (sorted.at(-1) as number));
}

function largest(rows: readonly Float64Array[]): number {
  return rows.reduce((most, row) => row.reduce((a, b) => Math.max(a, b), most), 0);
}
