import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { statisticsCriterion } from "./layer-statistics.js";

/** The frequency criterion has no options. */
export type FrequencyOptions = Record<never, never>;

declare module "@coppice/core" {
  interface CriterionPlugins {
    frequency: FrequencyOptions;
  }
}

/**
 * `s_j = n_j`, the number of tokens that the router sends to expert j, counted on the choices the model really
 * makes. Used as a baseline by EEP (arXiv 2407.00945) and as `expert_frequency` in the code of REAP
 * (CerebrasResearch/reap); the merging weight of MC-SMoE (arXiv 2310.01334).
 */
export const frequency = definePlugin({
  kind: "criterion",
  name: "frequency",
  contract: 1,
  summary: "Scores experts by how many tokens the router sends them.",
  reference: "https://arxiv.org/abs/2310.01334",
  options: v.strictObject({}),
  create: () => statisticsCriterion(({ count }) => count.slice()),
});
