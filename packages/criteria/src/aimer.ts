import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { weightCriterion } from "./expert-weights.js";

/** The AIMER criterion has no options. */
export type AimerOptions = Record<never, never>;

declare module "@coppice/core" {
  interface CriterionPlugins {
    aimer: AimerOptions;
  }
}

/**
 * Absolute mean over root mean square (AIMER, arXiv 2603.18492): over the n weights of the gate, up and down matrices of
 * expert j together, `a_j = (‖θ_j‖₁ / n) / sqrt(‖θ_j‖₂² / n) = ‖θ_j‖₁ / (√n ‖θ_j‖₂)`, between 1/√n (one weight holds
 * everything) and 1 (all weights are equally large). Its authors prune the largest, so that the score is `-a_j`; an
 * expert of zeros scores -1. Biases, which the families of the paper do not have, take no part. Needs no data.
 */
export const aimer = definePlugin({
  kind: "criterion",
  name: "aimer",
  contract: 1,
  summary: "Scores experts by how unevenly their weights are spread (AIMER); needs no data.",
  reference: "https://arxiv.org/abs/2603.18492",
  options: v.strictObject({}),
  create: () =>
    weightCriterion(
      "aimer",
      ({ gate, up, down }) => (gate ? [gate, up, down] : [up, down]),
      ({ count, absolute, squares }) => (squares === 0 ? -1 : -absolute / Math.sqrt(count * squares)),
    ),
});
