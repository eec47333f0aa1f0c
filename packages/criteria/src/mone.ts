import { definePlugin } from "@coppice/core";
import * as v from "valibot";
import { extrasCriterion, type LayerWith } from "./layer-statistics.js";

export interface MoneOptions {
  /** `fusion`: variance times routing score; `variance`: the variance alone. @default "fusion" */
  readonly score?: "fusion" | "variance" | undefined;
}

declare module "@coppice/core" {
  interface CriterionPlugins {
    mone: MoneOptions;
  }
}

/**
 * Mixture of novices (MoNE, arXiv 2507.00390): `s_j = ‖sqrt(Var_t f_j(x_t))‖₂ · Σ_t g_tj` over the tokens routed to expert
 * j, the variance per output value. An expert whose output hardly varies can be replaced by its mean, which is the
 * method; here its score alone is used. Needs statistics with `outputSum`
 * and `outputNorm2`. An expert that serves no token scores 0.
 */
export const mone = definePlugin({
  kind: "criterion",
  name: "mone",
  contract: 1,
  summary: "Scores experts by how much their outputs vary, times the gate weights they receive (MoNE).",
  reference: "https://arxiv.org/abs/2507.00390",
  options: v.strictObject({ score: v.optional(v.picklist(["fusion", "variance"]), "fusion") }),
  create: ({ score }) =>
    extrasCriterion("mone", ["outputSum", "outputNorm2"], (layers) =>
      layers.map((layer) => {
        const deviation = deviations(layer);
        return score === "variance"
          ? deviation
          : deviation.map((value, e) => value * (layer.gate[e] as number));
      }),
    ),
});

/** `‖sqrt(Var_t f(x_t))‖₂` of every expert: variances per output value add up to mean ‖f‖² - ‖mean f‖². */
function deviations({ count, outputSum, outputNorm2 }: LayerWith<"outputSum" | "outputNorm2">): Float64Array {
  const hidden = outputSum.length / count.length;
  return count.map((n, expert) => {
    if (n === 0) return 0;
    let meanNorm2 = 0;
    for (let i = expert * hidden; i < (expert + 1) * hidden; i++)
      meanNorm2 += ((outputSum[i] as number) / n) ** 2;
    return Math.sqrt(Math.max(0, (outputNorm2[expert] as number) / n - meanNorm2));
  });
}
