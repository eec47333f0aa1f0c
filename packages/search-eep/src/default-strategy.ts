import type { Candidate, Scored, SearchContext, SearchStrategy } from "@coppice/core";
import type { Layout } from "./layout.js";
import { MergePhase } from "./merge-phase.js";
import type { Phase } from "./phase.js";
import type { DefaultRates } from "./presets.js";
import { PrunePhase } from "./prune-phase.js";

export interface DefaultOptions {
  readonly layout: Layout;
  readonly router: "stock" | "mapped";
  readonly seeds: "all" | readonly string[];
  readonly rates: DefaultRates;
  /** Evaluations of the two phases; the merge phase also gets what the prune phase could not use. */
  readonly prune: number;
  readonly merge: number;
}

/** EEP's two phases with seeding, no repeated plans and adaptive steps; never proposes the same plan twice. */
export class DefaultStrategy implements SearchStrategy {
  readonly #options: DefaultOptions;
  readonly #context: SearchContext;
  readonly #prune: PrunePhase | undefined;
  #phase: { name: string; run: Phase } | undefined;
  #asked = 0;

  /** @throws COPPICE_PLUGIN_OPTIONS when a seed has no scores */
  constructor(options: DefaultOptions, context: SearchContext) {
    const { layout, rates, seeds, prune } = options;
    this.#options = options;
    this.#context = context;
    if (prune === 0) return;
    this.#prune = new PrunePhase(layout, context, { rates, seeds, evaluations: prune });
    this.#phase = { name: "prune", run: this.#prune };
  }

  ask(limit: number): readonly Candidate[] {
    let proposals = this.#phase?.run.propose(limit) ?? [];
    if (proposals.length === 0 && this.#phase?.name !== "merge" && this.#options.merge > 0) {
      const { layout, rates, router, prune, merge } = this.#options;
      const run = new MergePhase(layout, this.#context, {
        rates,
        mapped: router === "mapped",
        evaluations: prune + merge - this.#asked,
        pruned: this.#prune?.ranked ?? [],
      });
      this.#phase = { name: "merge", run };
      proposals = run.propose(limit);
    }
    this.#asked += proposals.length;
    const phase = this.#phase?.name ?? "";
    return proposals.map(({ plan, origin }) => ({ plan, phase, origin }));
  }

  tell(results: readonly Scored[]): void {
    this.#phase?.run.learn(results);
  }
}
