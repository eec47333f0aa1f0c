import {
  emptyFrontier,
  extended,
  extendedInPlace,
  type Frontier,
  merged,
  singleFrontier,
} from "./frontier.js";
import { RuleCounts } from "./rule-counts.js";
import type { Relaxed, UnitBound } from "./unit-bound.js";
import type { PreparedGroup, PreparedOption, PreparedUnit } from "./unit-groups.js";
import { remainders } from "./unit-remainder.js";

export interface ClosedGap {
  /** Undefined when there is none, or none below the limit. */
  readonly answer: Relaxed | undefined;
  /** What no loss is below, when the search was given up for its size; undefined when the choice is the best. */
  readonly bound: number | undefined;
}

/** Most choices that are remembered, which take a second; a search that needs more is given up. */
const nodeLimit = 2 ** 22;
/** Sums that differ by less, relatively, may be equal but for rounding. */
const rounding = 1e-12;

/** First part of the gap that is looked into, and by how much it grows. */
const firstPart = 2 ** -12;
const growth = 4;

/**
 * Finds the best answer between a bound and an answer. Assumes that there is one in the lowest part of the gap, which makes
 * `answerUpTo` fast, then in a larger part: the first that is found is the best, and nothing found raises the bound.
 * @param start an answer
 * @param below what answers must be below
 */
export function closeGap(
  groups: readonly PreparedGroup[],
  bound: UnitBound,
  start: Relaxed | undefined,
  below = Number.POSITIVE_INFINITY,
): ClosedGap {
  let answer = start;
  let goal = Math.min(start?.loss ?? largestLoss(groups), below);
  let proven = bound.value;
  const slack = rounding * (Math.abs(goal) + Math.abs(proven) + bound.multiplier * bound.budget);
  // Nothing is below the bound.
  if (goal < proven - slack) return { answer, bound: undefined };
  for (let part = (goal - proven) * firstPart; ; part *= growth) {
    const isWhole = bound.value + part >= goal;
    const most = isWhole ? goal : bound.value + part;
    const found = answerUpTo(groups, bound, most + slack);
    if (found === "too large") return { answer, bound: proven };
    if (found && isBetter(found, answer, below)) {
      answer = found;
      goal = found.loss;
    }
    if (isWhole || goal <= most) return { answer, bound: undefined };
    proven = most;
  }
}

function isBetter(found: Relaxed, answer: Relaxed | undefined, below: number): boolean {
  if (!answer) return found.loss < below;
  return found.loss < answer.loss || (found.loss === answer.loss && found.bytes < answer.bytes);
}

/**
 * Dynamic programming over units: keeps, per count of the rules, the frontier of partial choices, without those that not
 * even the bound of the rest brings down to `most`. All choices whose loss is at most that are looked into.
 * @returns undefined when there is none
 */
function answerUpTo(
  all: readonly PreparedGroup[],
  { budget, multiplier, value }: UnitBound,
  most: number,
): Relaxed | undefined | "too large" {
  const groups = all.map(({ units, rules }) => ({
    units: units.map((unit) => usefulOptions(unit, multiplier, most - value)),
    rules,
  }));
  const rest = remainders(groups, multiplier);
  const chain = new Chain();
  let whole = singleFrontier();
  for (const [g, { units, rules }] of groups.entries()) {
    const { value: restValue, bytes: restBytes } = rest(g);
    const counts = new RuleCounts(rules, units.length);
    let states = new Map([[0, whole]]);
    for (const [u, { options }] of units.entries()) {
      const next = new Map<number, Frontier>();
      for (const [count, frontier] of states) {
        for (const [pick, option] of options.entries()) {
          const to = counts.add(count, option.rules);
          if (to === undefined) continue;
          const limits = {
            bytes: budget - restBytes(u + 1),
            weighed: most + multiplier * budget - restValue(u + 1, counts.count(to, 0)),
            multiplier,
          };
          const longer =
            options.length > 1 ? extended(frontier, option, pick, limits) : extendedInPlace(frontier, option);
          if (longer.bytes.length === 0) continue;
          const other = next.get(to);
          next.set(to, other ? merged(other, longer) : longer);
        }
      }
      // What a unit without an alternative gets need not be remembered.
      if (options.length > 1) for (const frontier of next.values()) chain.add(frontier, g, u);
      if (chain.length > nodeLimit) return "too large";
      states = next;
    }
    const done = [...states].flatMap(([count, frontier]) => (counts.isMet(count) ? [frontier] : []));
    whole = done.reduce(merged, emptyFrontier(0));
  }
  // Units without an alternative were added without a look at the budget; the largest choices may be beyond it.
  let last = whole.bytes.length - 1;
  while (last >= 0 && (whole.bytes[last] as number) > budget) last--;
  if (last < 0) return undefined;
  const chosen = groups.map(({ units }) => units.map(({ options: [first] }) => first as PreparedOption));
  for (const { group, unit, pick } of chain.upTo(whole.from[last] as number)) {
    (chosen[group] as PreparedOption[])[unit] = groups[group]?.units[unit]?.options[pick] as PreparedOption;
  }
  return { groups: chosen, bytes: whole.bytes[last] as number, loss: whole.loss[last] as number };
}

function largestLoss(groups: readonly PreparedGroup[]): number {
  let sum = 0;
  for (const { units } of groups) {
    for (const { options } of units) sum += Math.max(...options.map(({ loss }) => loss));
  }
  return sum;
}

/**
 * Options that may be in a choice this far above the bound: those that are worse than another of the unit, which the first
 * rule treats alike, by no more than that.
 */
function usefulOptions({ options }: PreparedUnit, multiplier: number, gap: number): PreparedUnit {
  const least = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
  const weigh = ({ loss, bytes }: PreparedOption) => loss + multiplier * bytes;
  for (const option of options) {
    least[option.rules & 1] = Math.min(least[option.rules & 1] as number, weigh(option));
  }
  return { options: options.filter((option) => weigh(option) - (least[option.rules & 1] as number) <= gap) };
}

/** Choices, each with the one before it. */
class Chain {
  #group: number[] = [];
  readonly #unit: number[] = [];
  readonly #pick: number[] = [];
  readonly #from: number[] = [];

  get length(): number {
    return this.#group.length;
  }

  /** Remembers the last choice of every one of a frontier, which from now on comes from it. */
  add({ from, pick }: Frontier, group: number, unit: number): void {
    for (let i = 0; i < from.length; i++) {
      this.#group.push(group);
      this.#unit.push(unit);
      this.#pick.push(pick[i] as number);
      this.#from.push(from[i] as number);
      from[i] = this.#group.length - 1;
    }
  }

  /** The choices that end at `node`, -1 for none, last first. */
  *upTo(node: number): Generator<{ readonly group: number; readonly unit: number; readonly pick: number }> {
    for (let at = node; at >= 0; at = this.#from[at] as number) {
      yield {
        group: this.#group[at] as number,
        unit: this.#unit[at] as number,
        pick: this.#pick[at] as number,
      };
    }
  }
}
