import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { statisticsCriterion } from "./layer-statistics.js";
import { scaledMoment } from "./scaled-moment.js";

/** The MAN criterion has no options. */
export type ManOptions = Record<never, never>;

declare module "@coppice/core" {
  interface CriterionPlugins {
    man: ManOptions;
  }
}

/**
 * Mean activation norm (MAN, arXiv 2606.15716): `s_j = (1 / n_j) Σ_{t routed to j} ‖f_j(x_t)‖₂`. Neither frequency nor
 * gate weights take part, which its authors recommend when no task is given. An expert that serves no token scores 0.
 */
export const man = definePlugin({
  kind: "criterion",
  name: "man",
  contract: 1,
  summary: "Scores experts by the mean norm of their outputs (MAN).",
  reference: "https://arxiv.org/abs/2606.15716",
  options: v.strictObject({}),
  create: () => statisticsCriterion((layer) => scaledMoment(layer, { a: 0, b: 0, c: 1 })),
});
