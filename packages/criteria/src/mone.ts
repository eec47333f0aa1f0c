import { definePlugin, type ExtraField } from "@coppice/core";
import * as v from "valibot";
import { requireExtras, statisticsCriterion } from "./layer-statistics.js";

export interface MoneOptions {
  /** `fusion`: variance times routing score; `variance`: the variance alone. @default "fusion" */
  readonly score?: "fusion" | "variance" | undefined;
}

declare module "@coppice/core" {
  interface CriterionPlugins {
    mone: MoneOptions;
  }
}

const extras: readonly ExtraField[] = ["outputSum", "outputNorm2"];

/**
 * Mixture of novices (MoNE, arXiv 2507.00390): `s_j = ‖sqrt(Var_t f_j(x_t))‖₂ · Σ_t g_tj` over the tokens routed to expert
 * j, the variance per output value. An expert whose output hardly varies can be replaced by its mean, which is the
 * method; here its score alone is used. The variances add up to mean ‖f‖² - ‖mean f‖². Needs statistics with `outputSum`
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
    statisticsCriterion((layer) => {
      const [sums, squares] = requireExtras(layer, extras, "mone") as [Float64Array, Float64Array];
      const hidden = sums.length / layer.count.length;
      return layer.count.map((count, expert) => {
        if (count === 0) return 0;
        let meanNorm2 = 0;
        for (let i = expert * hidden; i < (expert + 1) * hidden; i++)
          meanNorm2 += ((sums[i] as number) / count) ** 2;
        const variance = Math.max(0, (squares[expert] as number) / count - meanNorm2);
        return Math.sqrt(variance) * (score === "fusion" ? (layer.gate[expert] as number) : 1);
      });
    }, extras),
});
