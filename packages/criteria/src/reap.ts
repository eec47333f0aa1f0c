import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { statisticsCriterion } from "./layer-statistics.js";
import { scaledMoment } from "./scaled-moment.js";

/** The REAP criterion has no options. */
export type ReapOptions = Record<never, never>;

declare module "@coppice/core" {
  interface CriterionPlugins {
    reap: ReapOptions;
  }
}

/**
 * Router-weighted expert activation pruning (REAP, arXiv 2510.13999; `reap` in the code of CerebrasResearch/reap):
 * `s_j = (1 / n_j) Σ_{t routed to j} g_tj ‖f_j(x_t)‖₂`, where g is the gate weight, f the unweighted expert output
 * and n_j the number of routed tokens. An expert that serves no token scores 0 and goes first.
 *
 * g is what really multiplies the output; where it multiplies the input (Llama-4), g‖f(x)‖ is ‖f(g·x)‖. The authors'
 * code takes the softmax over all experts instead and divides by the chosen sum only when the config says
 * `norm_topk_prob`, so its scores of Mixtral, which always divides, differ from these.
 */
export const reap = definePlugin({
  kind: "criterion",
  name: "reap",
  contract: 1,
  summary: "Scores experts by the mean norm of what they add to their tokens (REAP).",
  reference: "https://arxiv.org/abs/2510.13999",
  options: v.strictObject({}),
  create: () => statisticsCriterion((layer) => scaledMoment(layer, { a: 0, b: 1, c: 1 })),
});
