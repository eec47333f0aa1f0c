import { checkKeep, createPlan, definePlugin, moeLayers, type SearchStrategy } from "@coppice/core";
import * as v from "valibot";

declare module "@coppice/core" {
  interface SearchPlugins {
    /** `keep`: experts that every MoE layer keeps. `swaps`: experts that one step exchanges, default 1. */
    "hill-climb": { keep: number; swaps?: number | undefined };
  }
}

const count = v.pipe(v.number(), v.integer(), v.minValue(1));

/** Climbs from random experts, a few random swaps at a time. */
export const hillClimb = definePlugin({
  kind: "search",
  name: "hill-climb",
  contract: 1,
  summary: "A few random swaps at a time, kept when they are no worse.",
  options: v.strictObject({ keep: count, swaps: v.optional(count, 1) }),
  create({ keep, swaps }, { model, rng }): SearchStrategy {
    const layers = moeLayers(model);
    for (const { index, feedForward } of layers) {
      checkKeep(keep, feedForward.experts.length, feedForward.router.topK, index);
    }
    let best: { subsets: number[][]; fitness: number } | undefined;
    let asked: number[][][] = [];

    const random = () => layers.map((layer) => rng.sample(layer.feedForward.experts.length, keep));
    const swap = (subsets: number[][]) => {
      const at = rng.integer(layers.length);
      const kept = subsets[at]!;
      const dropped = [...layers[at]!.feedForward.experts.keys()].filter((expert) => !kept.includes(expert));
      return dropped.length > 0 ? subsets.with(at, kept.with(rng.integer(keep), rng.pick(dropped))) : subsets;
    };
    return {
      ask(limit) {
        const step = (from: number[][]) => Array.from({ length: swaps }).reduce<number[][]>(swap, from);
        asked = Array.from({ length: limit }, () => (best ? step(best.subsets) : random()));
        return asked.map((subsets) => {
          const plan = layers.map(({ index }, i) => ({ layer: index, experts: subsets[i]! }));
          return { plan: createPlan(model, plan), phase: "prune", origin: best ? "swap" : "random" };
        });
      },
      tell(results) {
        results.forEach(({ fitness }, i) => {
          if (!best || fitness >= best.fitness) best = { subsets: asked[i]!, fitness };
        });
      },
    };
  },
});
