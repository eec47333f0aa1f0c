import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { statisticsCriterion } from "./layer-statistics.js";
import { scaledMoment } from "./scaled-moment.js";

export interface MomentsOptions {
  /** Power of the number of routed tokens, from 0 (mean over them) to 1 (their sum). @default 1 */
  readonly a?: number | undefined;
  /** Power of the gate weight. @default 1 */
  readonly b?: 0 | 1 | 2 | undefined;
  /** Power of the norm of the output. @default 1 */
  readonly c?: 0 | 1 | 2 | undefined;
}

declare module "@coppice/core" {
  interface CriterionPlugins {
    moments: MomentsOptions;
  }
}

const power = v.optional(v.picklist([0, 1, 2]), 1);

/**
 * The family of arXiv 2606.15716 (frequency, gate weight, activation): `s_j = n_j^a · mean(g_tj^b ‖f_j(x_t)‖₂^c)` over
 * the tokens routed to expert j. Frequency is (1, 0, 0), soft activation (1, 1, 0), EAN (1, 0, 1), MAN (0, 0, 1), MSAN
 * (0, 0, 2) and REAP (0, 1, 1). The default (1, 1, 1) is the sum of the norms of what the expert added
 * (`weighted_ean_sum` in the code of REAP).
 */
export const moments = definePlugin({
  kind: "criterion",
  name: "moments",
  contract: 1,
  summary: "Scores experts by n^a mean(g^b |f|^c): tokens, gate weights and output norms with chosen powers.",
  reference: "https://arxiv.org/abs/2606.15716",
  options: v.strictObject({
    a: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(1)), 1),
    b: power,
    c: power,
  }),
  create: (powers) => statisticsCriterion((layer) => scaledMoment(layer, powers)),
});
