import type { Candidate, Scored, SearchContext, SearchStrategy } from "@coppice/core";
import { EliminationPhase } from "./elimination-phase.js";
import type { Layout } from "./layout.js";
import { MergePhase } from "./merge-phase.js";
import type { Phase, Proposal } from "./phase.js";
import type { DefaultRates } from "./presets.js";
import { PrunePhase } from "./prune-phase.js";

export interface DefaultOptions {
  readonly layout: Layout;
  readonly router: "stock" | "mapped";
  readonly seeds: "all" | readonly string[];
  readonly rates: DefaultRates;
  /** Whether candidates that can no longer win are stopped early. */
  readonly race: boolean;
  /** Evaluations of the two phases; each phase also gets what the one before could not use. */
  readonly prune: number;
  readonly merge: number;
}

/** EEP's two phases with seeding, no repeated plans and adaptive steps; never proposes the same plan twice. */
export class DefaultStrategy implements SearchStrategy {
  readonly #phases: Iterator<{ name: string; run: Phase }>;
  #phase: { name: string; run: Phase } | undefined;
  #asked = 0;

  /** @throws COPPICE_PLUGIN_OPTIONS when a seed has no scores */
  constructor(options: DefaultOptions, context: SearchContext) {
    this.#phases = this.#sequence(options, context);
    this.#phase = this.#next();
  }

  ask(limit: number): readonly Candidate[] {
    let proposals: Proposal[] = [];
    while (this.#phase && proposals.length === 0) {
      proposals = this.#phase.run.propose(limit);
      if (proposals.length === 0) this.#phase = this.#next();
    }
    this.#asked += proposals.length;
    const phase = this.#phase?.name ?? "";
    return proposals.map((proposal) => ({ ...proposal, phase }));
  }

  tell(results: readonly Scored[]): void {
    this.#phase?.run.learn(results);
  }

  #next(): { name: string; run: Phase } | undefined {
    const { value, done } = this.#phases.next();
    return done ? undefined : value;
  }

  /** The phases in order; each is made when the one before has ended. */
  *#sequence(options: DefaultOptions, context: SearchContext) {
    const { layout, rates, seeds, router, race, prune, merge } = options;
    let pruning: PrunePhase | undefined;
    if (prune > 0) {
      const evaluations = Math.floor(prune * rates.eliminationShare);
      const elimination = new EliminationPhase(layout, context, { seeds, evaluations });
      yield { name: "prune", run: elimination };
      pruning = new PrunePhase(layout, context, {
        rates,
        seeds,
        race,
        evaluations: prune - this.#asked,
        known: elimination.finished,
        ...(this.#asked > 0 && { start: { subsets: elimination.subsets, origin: "elimination" } }),
      });
      yield { name: "prune", run: pruning };
    }
    if (merge > 0) {
      const start = pruning?.ranked[0];
      const evaluations = prune + merge - this.#asked;
      yield {
        name: "merge",
        run: new MergePhase(layout, context, {
          rates,
          mapped: router === "mapped",
          evaluations,
          race,
          start,
        }),
      };
    }
  }
}
