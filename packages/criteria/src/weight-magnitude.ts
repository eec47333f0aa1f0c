import { definePlugin, mlpTensors } from "@coppice/core";
import * as v from "valibot";
import { weightCriterion } from "./expert-weights.js";

/** The weight-magnitude criterion has no options. */
export type WeightMagnitudeOptions = Record<never, never>;

declare module "@coppice/core" {
  interface CriterionPlugins {
    "weight-magnitude": WeightMagnitudeOptions;
  }
}

/**
 * `s_j = ‖θ_j‖_F`, the Frobenius norm of all weights of expert j (gate, up and down together, biases too where there are any), summed in float64:
 * magnitude pruning (Han et al., arXiv 1506.02626) with the expert as the unit. Needs no data.
 */
export const weightMagnitude = definePlugin({
  kind: "criterion",
  name: "weight-magnitude",
  contract: 1,
  summary: "Scores experts by the Frobenius norm of their weights; needs no data.",
  reference: "https://arxiv.org/abs/1506.02626",
  options: v.strictObject({}),
  create: () => weightCriterion("weight-magnitude", mlpTensors, ({ squares }) => Math.sqrt(squares)),
});
