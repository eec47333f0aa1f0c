import { type Candidate, definePlugin, type SearchContext, type SearchStrategy } from "@coppice/core";
import * as v from "valibot";
import { type SubsetOptions, SubsetSpace, scoresOf, subsetOptions } from "./subsets.js";

/** Options of the plugin `one-shot`. */
export interface OneShotOptions extends SubsetOptions {
  /** Name of the criterion whose highest-scoring experts stay. */
  criterion: string;
}

declare module "@coppice/core" {
  interface SearchPlugins {
    "one-shot": OneShotOptions;
  }
}

class OneShot implements SearchStrategy {
  #left: Candidate[];

  constructor(options: OneShotOptions, context: SearchContext) {
    const space = new SubsetSpace(context.model, options);
    const scores = scoresOf("one-shot", context.scores, options.criterion);
    const plan = space.plan(space.best(scores));
    this.#left = [{ plan, phase: "prune", origin: `seed:${options.criterion}` }];
  }

  ask(limit: number): readonly Candidate[] {
    return this.#left.splice(0, limit);
  }

  tell(): void {}
}

/** The plan of one criterion and nothing else, so that it stands in the same table as the searches. */
export const oneShot = definePlugin({
  kind: "search",
  name: "one-shot",
  contract: 1,
  summary: "The plan of one criterion, without searching.",
  options: v.strictObject({ ...subsetOptions, criterion: v.pipe(v.string(), v.minLength(1)) }),
  create: (options, context) => new OneShot(options, context),
});
