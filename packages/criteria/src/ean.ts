import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { statisticsCriterion } from "./layer-statistics.js";
import { scaledMoment } from "./scaled-moment.js";

export interface EanOptions {
  /**
   * `sum` over the routed tokens, which busy experts win, or their `mean`, which is the criterion `man`.
   * @default "sum"
   */
  readonly over?: "sum" | "mean" | undefined;
}

declare module "@coppice/core" {
  interface CriterionPlugins {
    ean: EanOptions;
  }
}

/**
 * Expert activation norm: `s_j = Σ_{t routed to j} ‖f_j(x_t)‖₂`, or its mean over the routed tokens (`ean_sum` and
 * `ean_mean` in the code of REAP, CerebrasResearch/reap; a baseline of arXiv 2510.13999). Gate weights take no part.
 */
export const ean = definePlugin({
  kind: "criterion",
  name: "ean",
  contract: 1,
  summary: "Scores experts by the norms of their outputs, without gate weights (EAN).",
  reference: "https://arxiv.org/abs/2510.13999",
  options: v.strictObject({ over: v.optional(v.picklist(["sum", "mean"]), "sum") }),
  create: ({ over }) =>
    statisticsCriterion((layer) => scaledMoment(layer, { a: over === "sum" ? 1 : 0, b: 0, c: 1 })),
});
