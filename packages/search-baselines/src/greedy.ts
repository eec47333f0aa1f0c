import {
  type Candidate,
  definePlugin,
  type Scored,
  type SearchContext,
  type SearchStrategy,
} from "@coppice/core";
import * as v from "valibot";
import { StepwiseSearch } from "./stepwise-search.js";
import { type SubsetOptions, SubsetSpace, scoresOf, subsetOptions, whole } from "./subsets.js";
import { SwapSearch } from "./swap-search.js";

/** Options of the plugin `greedy`. */
export interface GreedyOptions extends SubsetOptions {
  /**
   * "swap" (default): local search by single swaps from a plan of `keep` experts. "backward" and "forward" first find
   * that plan by dropping experts from the whole model, or adding them to the fewest that the routers can work with.
   */
  mode?: "swap" | "backward" | "forward" | undefined;
  /** Criterion whose plan "swap" starts from, and by which the others order experts; absent: chance. */
  start?: string | undefined;
  /** Most experts that "backward" and "forward" compare in one step; default: as many as the budget allows. */
  width?: number | undefined;
}

declare module "@coppice/core" {
  interface SearchPlugins {
    greedy: GreedyOptions;
  }
}

/** Stepwise selection, where there is one, then local search by swaps. */
class Greedy implements SearchStrategy {
  readonly #context: SearchContext;
  readonly #space: SubsetSpace;
  #steps: StepwiseSearch | undefined;
  #swaps: SwapSearch | undefined;

  constructor(options: GreedyOptions, context: SearchContext) {
    const { mode = "swap", start, width } = options;
    this.#context = context;
    this.#space = new SubsetSpace(context.model, options);
    const scores = start === undefined ? undefined : scoresOf("greedy", context.scores, start);
    if (mode === "swap") {
      this.#swaps = new SwapSearch(
        this.#space,
        context.rng,
        scores && { subsets: this.#space.best(scores), origin: `seed:${start}` },
      );
    } else {
      const { evaluations } = context;
      this.#steps = new StepwiseSearch(this.#space, context.rng, {
        direction: mode,
        scores,
        width,
        evaluations,
      });
    }
  }

  ask(limit: number): readonly Candidate[] {
    const candidates = this.#steps?.ask(limit) ?? [];
    if (candidates.length > 0) return candidates;
    this.#swaps ??= new SwapSearch(this.#space, this.#context.rng, this.#steps?.result);
    this.#steps = undefined;
    return this.#swaps.ask(limit);
  }

  tell(results: readonly Scored[]): void {
    (this.#steps ?? this.#swaps)?.tell(results);
  }
}

/** Stepwise selection and swap-based local search with restarts. */
export const greedy = definePlugin({
  kind: "search",
  name: "greedy",
  contract: 1,
  summary: "Experts dropped, added or swapped one at a time, until no swap improves.",
  options: v.strictObject({
    ...subsetOptions,
    mode: v.optional(v.picklist(["swap", "backward", "forward"])),
    start: v.optional(v.pipe(v.string(), v.minLength(1))),
    width: v.optional(whole),
  }),
  create: (options, context) => new Greedy(options, context),
});
