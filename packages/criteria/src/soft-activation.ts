import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { statisticsCriterion } from "./layer-statistics.js";

export interface SoftActivationOptions {
  /**
   * Which tokens count: `routed`, those that expert j really serves, by gate weight; or `all`, every token, by its
   * softmax probability over all experts.
   * @default "routed"
   */
  readonly tokens?: "routed" | "all" | undefined;
}

declare module "@coppice/core" {
  interface CriterionPlugins {
    "soft-activation": SoftActivationOptions;
  }
}

/**
 * `s_j = Σ_{t routed to j} g_tj`, the gate weight that expert j receives altogether (soft counting of SEER-MoE,
 * arXiv 2404.05089; `weighted_expert_frequency_sum` in the code of REAP). With `tokens: "all"` it is
 * `s_j = Σ_t p_tj` over the router's probabilities (the routing score of HC-SMoE, arXiv 2410.08589).
 */
export const softActivation = definePlugin({
  kind: "criterion",
  name: "soft-activation",
  contract: 1,
  summary: "Scores experts by the sum of the gate weights they receive.",
  reference: "https://arxiv.org/abs/2404.05089",
  options: v.strictObject({ tokens: v.optional(v.picklist(["routed", "all"]), "routed") }),
  create: ({ tokens }) =>
    statisticsCriterion(({ gate, probability }) => (tokens === "all" ? probability : gate).slice()),
});
