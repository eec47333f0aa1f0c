import type { Scored, SearchContext } from "@coppice/core";
import { planFromSubsets, type Subsets, subsetsKey } from "./genome.js";
import { type Layout, normalizedSums, repairSubsets, seedNames } from "./layout.js";
import type { Phase, Proposal } from "./phase.js";
import type { Pruned } from "./prune-phase.js";

/** One expert of one group, and what dropping it is thought to cost. */
interface Unit {
  readonly group: number;
  readonly expert: number;
  /** Fitness lost, by the latest evaluation that dropped it; not re-measured as others go ("lazy" greedy). */
  loss: number;
}

/** Sets of units that are compared in one step when the budget allows. */
const mostAlternatives = 3;

/**
 * Lazy greedy backward elimination: from the whole model, drop the expert whose loss measures least, until every
 * group holds `keep`. Losses are measured once for every expert alone and then only for the cheapest few of each
 * step, since a loss changes slowly while others are dropped (the idea of lazy evaluation in submodular greedy
 * selection, Minoux 1978, used as a heuristic).
 *
 * With too many experts to measure each alone, the criteria's scores order them; with too few evaluations for one
 * step per expert, a step drops several. Plans that keep more than was asked for are probes.
 */
export class EliminationPhase implements Phase {
  readonly #layout: Layout;
  readonly #units: Unit[];
  readonly #kept: Set<number>[];
  #left: number;
  /** Fitness of the plan with all of `#kept`. */
  #base = Number.NaN;
  #stage: "base" | "single" | "steps";
  #asked: Unit[][] = [];
  #cursor = 0;
  /** Units of a step, and alternatives that it compares. */
  #chunk = 1;
  #alternatives = mostAlternatives;
  #measured: { units: Unit[]; fitness: number }[] = [];
  #pending: Unit[][] = [];
  /** Fitness of every plan so far; what is known is not proposed again. */
  readonly #known = new Map<string, number>();
  readonly #finished: Pruned[] = [];

  constructor(
    layout: Layout,
    context: SearchContext,
    options: { seeds: "all" | readonly string[]; evaluations: number },
  ) {
    this.#layout = layout;
    this.#left = options.evaluations;
    this.#kept = layout.groups.map((group) => new Set(Array.from({ length: group.experts }, (_, e) => e)));
    const names = seedNames(layout, context.scores, options.seeds);
    const prior = layout.groups.map((group) => {
      const sums = new Float64Array(group.experts);
      for (const name of names) {
        const scores = normalizedSums(group, context.scores.get(name) as readonly Float64Array[]);
        scores.forEach((score, expert) => {
          sums[expert] = (sums[expert] as number) + score;
        });
      }
      return sums;
    });
    this.#units = layout.groups.flatMap((group, g) =>
      Array.from({ length: group.experts > layout.keep ? group.experts : 0 }, (_, expert) => ({
        group: g,
        expert,
        loss: prior[g]?.[expert] as number,
      })),
    );
    const single = this.#units.length + 1 <= this.#left / 2;
    this.#stage = single ? "base" : "steps";
    // Without measurements and without scores there is nothing to go by.
    if (!single && names.length === 0) this.#left = 0;
    this.#planSteps(this.#left - (single ? this.#units.length + 1 : 0));
  }

  /** What is left when the rest of the elimination follows the losses known so far. */
  get subsets(): Subsets {
    const kept = this.#kept.map((set) => new Set(set));
    for (const { group, expert } of this.#droppable()) {
      const set = kept[group] as Set<number>;
      if (set.size > this.#layout.keep) set.delete(expert);
    }
    return repairSubsets(
      this.#layout,
      kept.map((set) => [...set]),
    );
  }

  /** Evaluated plans that keep no more than was asked for. */
  get finished(): readonly Pruned[] {
    return this.#finished;
  }

  propose(limit: number): Proposal[] {
    this.#asked = [];
    if (this.#left <= 0) return [];
    const wanted = Math.min(limit, this.#left);
    if (this.#stage === "base") this.#asked = [[]];
    else if (this.#stage === "single") {
      this.#asked = this.#units.slice(this.#cursor, this.#cursor + wanted).map((unit) => [unit]);
    } else {
      if (this.#pending.length === 0) this.#pending = this.#nextStep();
      this.#asked = this.#pending.splice(0, wanted);
    }
    this.#left -= this.#asked.length;
    return this.#asked.map((units) => {
      const subsets = this.#without(units);
      return {
        plan: planFromSubsets(this.#layout, subsets),
        origin: this.#stage === "base" ? "model" : "elimination",
        ...(!this.#isFinished(subsets) && { probe: true }),
      };
    });
  }

  learn(results: readonly Scored[]): void {
    results.forEach(({ fitness, key, scores }, i) => {
      const units = this.#asked[i] as Unit[];
      const subsets = this.#without(units);
      this.#known.set(subsetsKey(subsets), fitness);
      if (this.#isFinished(subsets)) this.#finished.push({ subsets, fitness, key, scores });
      if (this.#stage === "base") this.#base = fitness;
      else if (this.#stage === "single") (units[0] as Unit).loss = this.#lossAt(fitness);
      else this.#measured.push({ units, fitness });
    });
    if (this.#stage === "base") this.#stage = "single";
    else if (this.#stage === "single") {
      this.#cursor += results.length;
      if (this.#cursor === this.#units.length) this.#stage = "steps";
    } else if (this.#pending.length === 0 || this.#left <= 0) this.#drop();
  }

  /** Alternatives of the next step that are not known yet; steps between known ones are taken on the way. */
  #nextStep(): Unit[][] {
    for (;;) {
      const sets = this.#candidates();
      const unknown: Unit[][] = [];
      for (const units of sets) {
        const fitness = this.#known.get(subsetsKey(this.#without(units)));
        if (fitness === undefined) unknown.push(units);
        else this.#measured.push({ units, fitness });
      }
      if (unknown.length > 0 || sets.length === 0) return unknown;
      this.#drop();
    }
  }

  #isFinished(subsets: Subsets): boolean {
    const isKept = subsets.every((subset) => subset.length === this.#layout.keep);
    // Steps drop one expert at a time, whatever the groups of the router; what the last ones leave may not fit them.
    return isKept && subsetsKey(repairSubsets(this.#layout, subsets)) === subsetsKey(subsets);
  }

  /** Drops the measured alternative that is best, and remembers what the others cost. */
  #drop(): void {
    const measured = this.#measured;
    this.#measured = [];
    this.#pending = [];
    const best = measured.reduce((a, b) => (b.fitness > a.fitness ? b : a));
    if (!Number.isNaN(this.#base)) {
      for (const { units, fitness } of measured) {
        for (const unit of units) unit.loss = this.#lossAt(fitness) / units.length;
      }
    }
    for (const { group, expert } of best.units) this.#kept[group]?.delete(expert);
    // Losses from criteria are no fitness: only measured ones are updated against a base.
    if (!Number.isNaN(this.#base)) this.#base = best.fitness;
  }

  /** A plan that failed costs more than any other; from a base that failed, only differences between plans count. */
  #lossAt(fitness: number): number {
    if (fitness === Number.NEGATIVE_INFINITY) return Number.MAX_VALUE;
    return (this.#base === Number.NEGATIVE_INFINITY ? 0 : this.#base) - fitness;
  }

  #planSteps(evaluations: number): void {
    const drops = this.#layout.groups.reduce((sum, group) => sum + group.experts - this.#layout.keep, 0);
    this.#alternatives = Math.min(
      mostAlternatives,
      Math.max(2, Math.floor(evaluations / Math.max(1, drops))),
    );
    this.#chunk = Math.max(1, Math.ceil((drops * this.#alternatives) / Math.max(1, evaluations)));
  }

  /** The next sets to compare, each of `#chunk` units, cheapest first; empty when nothing is left to drop. */
  #candidates(): Unit[][] {
    const sets: Unit[][] = [];
    const droppable = this.#droppable();
    while (sets.length < this.#alternatives && droppable.length > 0) {
      const room = this.#kept.map((set) => set.size - this.#layout.keep);
      const set: Unit[] = [];
      for (let i = 0; i < droppable.length && set.length < this.#chunk; ) {
        const unit = droppable[i] as Unit;
        if ((room[unit.group] as number) > 0) {
          room[unit.group] = (room[unit.group] as number) - 1;
          set.push(unit);
          droppable.splice(i, 1);
        } else i++;
      }
      sets.push(set);
    }
    return sets;
  }

  /** Units that may go, cheapest first. */
  #droppable(): Unit[] {
    return this.#units
      .filter(({ group, expert }) => {
        const set = this.#kept[group] as Set<number>;
        return set.size > this.#layout.keep && set.has(expert);
      })
      .sort((a, b) => a.loss - b.loss);
  }

  #without(units: readonly Unit[]): Subsets {
    return this.#kept.map((set, g) => {
      const gone = new Set(units.filter(({ group }) => group === g).map(({ expert }) => expert));
      return [...set].filter((expert) => !gone.has(expert)).sort((a, b) => a - b);
    });
  }
}
