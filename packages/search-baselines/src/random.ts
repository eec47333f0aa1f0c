import {
  type Candidate,
  definePlugin,
  type Rng,
  type SearchContext,
  type SearchStrategy,
} from "@coppice/core";
import * as v from "valibot";
import { type SubsetOptions, SubsetSpace, subsetOptions } from "./subsets.js";

/** Options of the plugin `random`. */
export type RandomOptions = SubsetOptions;

declare module "@coppice/core" {
  interface SearchPlugins {
    random: RandomOptions;
  }
}

/** Draws in a row that may repeat known plans before the space counts as exhausted. */
const redraws = 1000;

class RandomSearch implements SearchStrategy {
  readonly #space: SubsetSpace;
  readonly #rng: Rng;
  readonly #seen = new Set<string>();

  constructor(options: RandomOptions, context: SearchContext) {
    this.#space = new SubsetSpace(context.model, options);
    this.#rng = context.rng;
  }

  ask(limit: number): readonly Candidate[] {
    const candidates: Candidate[] = [];
    for (let repeats = 0; candidates.length < limit && repeats < redraws; repeats++) {
      const subsets = this.#space.random(this.#rng);
      const key = subsets.join(";");
      if (this.#seen.has(key)) continue;
      this.#seen.add(key);
      repeats = 0;
      candidates.push({ plan: this.#space.plan(subsets), phase: "prune", origin: "random" });
    }
    return candidates;
  }

  tell(): void {}
}

/** Uniformly random subsets, one per layer: the least that a search must beat. */
export const random = definePlugin({
  kind: "search",
  name: "random",
  contract: 1,
  summary: "Uniformly random experts in every layer.",
  options: v.strictObject(subsetOptions),
  create: (options, context) => new RandomSearch(options, context),
});
