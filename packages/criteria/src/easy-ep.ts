import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { extrasCriterion } from "./layer-statistics.js";

/** The EASY-EP criterion has no options. */
export type EasyEpOptions = Record<never, never>;

declare module "@coppice/core" {
  interface CriterionPlugins {
    "easy-ep": EasyEpOptions;
  }
}

/**
 * EASY-EP (arXiv 2504.06792): `s_j = Σ_{t routed to j} c_t g_tj ‖f_j(x_t)‖₂` with `c_t = max(0, 1 - cos(h_t, h_t + y_t))`,
 * h the residual stream before the block and y the sum of the routed experts without a shared one: tokens count by how
 * much the experts turn them. Needs statistics with `change`.
 */
export const easyEp = definePlugin({
  kind: "criterion",
  name: "easy-ep",
  contract: 1,
  summary: "Scores experts by what they add to the tokens that the layer changes most (EASY-EP).",
  reference: "https://arxiv.org/abs/2504.06792",
  options: v.strictObject({}),
  create: () =>
    extrasCriterion("easy-ep", ["change"], (layers) => layers.map(({ change }) => change.slice())),
});
