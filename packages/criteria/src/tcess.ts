import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { statisticsCriterion } from "./layer-statistics.js";

export interface TcessOptions {
  /**
   * Tokens whose logit counts for an expert: `top`, those where its logit is the largest of all, or `routed`, those
   * that the model really routes to it.
   * @default "top"
   */
  readonly tokens?: "top" | "routed" | undefined;
}

declare module "@coppice/core" {
  interface CriterionPlugins {
    tcess: TcessOptions;
  }
}

/**
 * Task-conditioned expected selection score of PreMoe (TCESS, arXiv 2505.17639): `s_j = (1 / T) Σ_t z_tj` over the
 * tokens t whose K largest router logits contain that of expert j, T being the number of all tokens. `top` is K = 1
 * without a threshold, as the authors' code (JarvisPei/PreMoe) has it; their threshold on local probabilities is not
 * offered, because such sums cannot be chosen after the pass. Logits are raw: a correction for the choice takes no
 * part, and an expert whose logits are negative where they count scores below one that is never chosen.
 */
export const tcess = definePlugin({
  kind: "criterion",
  name: "tcess",
  contract: 1,
  summary: "Scores experts by the raw router logits of the tokens that choose them (TCESS of PreMoe).",
  reference: "https://arxiv.org/abs/2505.17639",
  options: v.strictObject({ tokens: v.optional(v.picklist(["top", "routed"]), "top") }),
  create: ({ tokens }) =>
    statisticsCriterion((layer) =>
      (tokens === "top" ? layer.topLogit : layer.routedLogit).map((sum) => sum / layer.tokens),
    ),
});
