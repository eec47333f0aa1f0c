import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { statisticsCriterion } from "./layer-statistics.js";
import { scaledMoment } from "./scaled-moment.js";

/** The MSAN criterion has no options. */
export type MsanOptions = Record<never, never>;

declare module "@coppice/core" {
  interface CriterionPlugins {
    msan: MsanOptions;
  }
}

/**
 * Mean squared activation norm (MSAN, arXiv 2606.15716): `s_j = (1 / n_j) Σ_{t routed to j} ‖f_j(x_t)‖₂²`. Like `man`,
 * with more weight on the tokens where the expert's output is large. An expert that serves no token scores 0.
 */
export const msan = definePlugin({
  kind: "criterion",
  name: "msan",
  contract: 1,
  summary: "Scores experts by the mean squared norm of their outputs (MSAN).",
  reference: "https://arxiv.org/abs/2606.15716",
  options: v.strictObject({}),
  create: () => statisticsCriterion((layer) => scaledMoment(layer, { a: 0, b: 0, c: 2 })),
});
