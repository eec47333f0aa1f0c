import { definePlugin, moeLayers, throwIfAborted } from "@coppice/core";
import * as v from "valibot";

/** The random criterion has no options; the seed is the run's. */
export type RandomOptions = Record<never, never>;

declare module "@coppice/core" {
  interface CriterionPlugins {
    random: RandomOptions;
  }
}

/**
 * Every expert gets an independent uniform score, so that keeping the highest is a uniformly random subset per
 * layer: the baseline that a method must beat. One draw says little; EEP (arXiv 2407.00945) reports the mean of 30.
 */
export const random = definePlugin({
  kind: "criterion",
  name: "random",
  contract: 1,
  summary: "Scores experts by chance: the baseline to beat.",
  reference: "https://arxiv.org/abs/2407.00945",
  options: v.strictObject({}),
  create: () => ({
    needs: { statistics: false, weights: false },
    async score({ model, rng, signal }) {
      throwIfAborted(signal, "scoring experts");
      return moeLayers(model).map(({ feedForward }) =>
        Float64Array.from(feedForward.experts, () => rng.uniform()),
      );
    },
  }),
});
