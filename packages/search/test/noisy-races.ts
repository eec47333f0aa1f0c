import {
  type Candidate,
  canonicalPlan,
  type Executor,
  noWork,
  type Plan,
  type PlanScores,
  planKey,
  Rng,
  raceParts,
  type Scored,
  type SearchStrategy,
} from "@coppice/core";
import { separableLandscape, toyModel } from "@coppice/plugin-kit";
import { Climber } from "./strategies.js";

export const model = toyModel({ layers: 2, experts: 8 });
export const { fitness: landscape } = separableLandscape(model);
export const samples = 64;

/** Scores of a plan: its fitness and noise that is the plan's own. */
export function noisyScores(proposed: Plan): Float64Array {
  const plan = canonicalPlan(proposed, model);
  const rng = Rng.fromSeed(Number.parseInt(planKey(plan, model).slice(0, 8), 16));
  return Float64Array.from({ length: samples }, () => landscape(plan) + 0.1 * rng.normal());
}

export interface NoisyExecutor extends Executor {
  /** Samples evaluated. */
  done(): number;
}

export function noisyExecutor({
  parts,
  busyParts,
  fails,
}: {
  parts: boolean;
  busyParts?: number;
  fails?: (part: number) => boolean;
}): NoisyExecutor {
  let done = 0;
  const dispose = async () => {};
  return {
    preferredBatch: 2,
    ...(parts && { parts: raceParts(samples) }),
    ...(busyParts !== undefined && { busyParts }),
    async evaluate(plans, { part } = {}) {
      if (part !== undefined && !parts) throw new Error("asked for a part");
      return plans.map((plan): PlanScores => {
        if (fails?.(part ?? 0)) throw new Error("stopped");
        const scores = noisyScores(plan).filter(
          (_, i) => part === undefined || i % raceParts(samples) === part,
        );
        done += scores.length;
        return { scores, correct: Uint8Array.from(scores, (score) => Number(score > 0.5)) };
      });
    },
    done: () => done,
    work: () => ({ ...noWork, tokenLayers: done }),
    dispose,
    [Symbol.asyncDispose]: dispose,
  };
}

/** A climber whose candidates race against its best plan so far. */
export class Racer implements SearchStrategy {
  readonly told: Scored[] = [];
  readonly #climber: Climber;
  #best: Scored | undefined;

  constructor(seed: number) {
    this.#climber = new Climber(model, seed);
  }

  ask(limit: number): readonly Candidate[] {
    const rival = this.#best?.key;
    return this.#climber.ask(limit).map((candidate) => ({ ...candidate, ...(rival && { rival }) }));
  }

  tell(results: readonly Scored[]): void {
    this.told.push(...results);
    this.#climber.tell(results);
    for (const result of results) if (result.fitness > (this.#best?.fitness ?? -1)) this.#best = result;
  }
}
