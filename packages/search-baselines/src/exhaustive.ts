import {
  type Candidate,
  CoppiceError,
  definePlugin,
  moeLayers,
  type Scored,
  type SearchContext,
  type SearchStrategy,
} from "@coppice/core";
import * as v from "valibot";
import { binomial, combinations } from "./combinations.js";
import { type SubsetOptions, SubsetSpace, type Subsets, scoresOf, subsetOptions, whole } from "./subsets.js";

/** Options of the plugin `exhaustive`. */
export interface ExhaustiveOptions extends SubsetOptions {
  /**
   * What the layers before have while the subsets of one are compared: "progressive" (default) what was chosen for
   * them, "independent" what the layers after have.
   */
  mode?: "progressive" | "independent" | undefined;
  /** Criterion whose experts the layers have that nothing is chosen for yet; absent: all their experts. */
  start?: string | undefined;
  /** Most plans that one pass over the layers may need; default: the run's evaluations. */
  limit?: number | undefined;
}

declare module "@coppice/core" {
  interface SearchPlugins {
    exhaustive: ExhaustiveOptions;
  }
}

/** Subsets of one layer that are counted one by one, where groups allow only some of them; it takes a second or so. */
const countLimit = 100_000;

/**
 * Tries every subset of one layer at a time (NAEE, arXiv 2402.14800, with fitness in place of reconstruction loss). When
 * every layer has its subset, goes over the layers again, the others as they were chosen, until no layer changes.
 */
class Exhaustive implements SearchStrategy {
  readonly #space: SubsetSpace;
  readonly #independent: boolean;
  /** What every layer has while nothing is chosen for it. */
  readonly #base: Subsets;
  /** Layers that drop experts, in the order in which they are visited. */
  readonly #rows: readonly number[];
  #chosen: Subsets;
  /** Fitness of `#chosen` where it was measured. */
  #fitness: number | undefined;
  /** Position in `#rows`; the number of rows when the plan of all choices is to be measured. */
  #at = -1;
  #pass = 0;
  /** Layers in a row whose subset did not change, the others being as chosen. */
  #unchanged = 0;
  #queue: Subsets[] = [];
  #asked: readonly Subsets[] = [];
  #best: { subsets: Subsets; fitness: number } | undefined;

  constructor(options: ExhaustiveOptions, context: SearchContext) {
    this.#space = new SubsetSpace(context.model, options);
    const { experts, keep } = this.#space;
    this.#rows = [...experts.keys()].filter((row) => (experts[row] as number) > keep);
    // With a single layer to choose for, both modes are the same.
    this.#independent = options.mode === "independent" && this.#rows.length > 1;
    this.#base =
      options.start === undefined
        ? experts.map((count) => Array.from({ length: count }, (_, expert) => expert))
        : this.#space.best(scoresOf("exhaustive", context.scores, options.start));
    this.#chosen = this.#base;
    // The last choice of a progressive pass needs no other look; choices that were made apart all do.
    if (this.#independent) this.#unchanged = -1;
    this.#check(options, context);
  }

  ask(limit: number): readonly Candidate[] {
    if (this.#queue.length === 0 && !this.#advance()) return [];
    this.#asked = this.#queue.splice(0, limit);
    const { keep } = this.#space;
    return this.#asked.map((subsets) => ({
      plan: this.#space.plan(subsets),
      phase: "prune",
      origin: this.#at === this.#rows.length ? "combined" : "subset",
      ...(subsets.some(({ length }) => length !== keep) && { probe: true }),
    }));
  }

  tell(results: readonly Scored[]): void {
    results.forEach(({ fitness }, i) => {
      if (!this.#best || fitness > this.#best.fitness) {
        this.#best = { subsets: this.#asked[i] as Subsets, fitness };
      }
    });
  }

  /** Takes the best of the present layer and queues the plans of the next one. False when nothing is left to try. */
  #advance(): boolean {
    this.#take();
    for (;;) {
      this.#at++;
      if (this.#at >= this.#rows.length) {
        if (this.#fitness === undefined) {
          // Choices that were made apart, or none at all.
          this.#at = this.#rows.length;
          this.#queue = [this.#chosen];
          return true;
        }
        if (this.#rows.length === 0) return false;
        this.#at = 0;
        this.#pass++;
      }
      const first = this.#pass === 0;
      if (!first && this.#unchanged >= this.#rows.length - 1) return false;
      const row = this.#rows[this.#at] as number;
      const around = first && this.#independent ? this.#base : this.#chosen;
      const present = first ? "" : `${this.#chosen[row]}`;
      this.#queue = this.#subsets(row)
        .filter((subset) => `${subset}` !== present)
        .map((subset) => around.with(row, subset));
      if (this.#queue.length > 0) return true;
      this.#unchanged++;
    }
  }

  #take(): void {
    const best = this.#best;
    if (!best) return;
    this.#best = undefined;
    const row = this.#rows[this.#at];
    if (this.#pass > 0) {
      const improved = best.fitness > (this.#fitness as number);
      this.#unchanged = improved ? 0 : this.#unchanged + 1;
      if (improved) ({ subsets: this.#chosen, fitness: this.#fitness } = best);
    } else if (row === undefined) {
      this.#fitness = best.fitness;
    } else if (this.#independent) {
      this.#chosen = this.#chosen.with(row, best.subsets[row] as readonly number[]);
    } else {
      this.#chosen = best.subsets;
      if (this.#at === this.#rows.length - 1) this.#fitness = best.fitness;
    }
  }

  #subsets(row: number): number[][] {
    const { experts, keep } = this.#space;
    return [...combinations(experts[row] as number, keep)].filter((subset) =>
      this.#space.accepts(row, subset),
    );
  }

  /** @throws COPPICE_PLUGIN_OPTIONS when the first pass cannot be finished */
  #check({ limit }: ExhaustiveOptions, { model, evaluations }: SearchContext): void {
    const { experts, keep } = this.#space;
    const most = Math.min(limit ?? evaluations, evaluations);
    const counts = this.#rows.map((row) => {
      const all = binomial(experts[row] as number, keep);
      return all > countLimit ? all : this.#subsets(row).length;
    });
    const needed = counts.reduce((sum, count) => sum + count, 0) + (this.#independent ? 1 : 0);
    if (needed <= most) return;
    const layers = moeLayers(model);
    const largest = counts.indexOf(Math.max(...counts));
    const row = this.#rows[largest] as number;
    const name = most < evaluations ? `limit=${limit}` : `the budget of ${evaluations} evaluations`;
    throw new CoppiceError(
      "COPPICE_PLUGIN_OPTIONS",
      `options of search:exhaustive are not usable: keep=${keep} needs ${needed} plans, more than ${name}; ` +
        `layer ${layers[row]?.index} alone has ${counts[largest]} subsets of ${keep} of its ${experts[row]} experts`,
      {
        hint: "raise the budget and the limit, keep nearly none or nearly all experts, or use greedy or eep",
        details: { keep, needed, most, layer: layers[row]?.index, subsets: counts[largest] },
      },
    );
  }
}

/** Every subset of one layer at a time. */
export const exhaustive = definePlugin({
  kind: "search",
  name: "exhaustive",
  contract: 1,
  summary: "Every subset of one layer at a time (NAEE, by fitness).",
  reference: "https://arxiv.org/abs/2402.14800",
  options: v.strictObject({
    ...subsetOptions,
    mode: v.optional(v.picklist(["progressive", "independent"])),
    start: v.optional(v.pipe(v.string(), v.minLength(1))),
    limit: v.optional(whole),
  }),
  create: (options, context) => new Exhaustive(options, context),
});
