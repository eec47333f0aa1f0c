import type { PreparedGroup, PreparedOption, PreparedUnit } from "./unit-groups.js";

/** A choice for all units, that meets the first rule of every group. */
export interface Relaxed {
  /** Per group, the chosen option of every unit. */
  readonly groups: readonly (readonly PreparedOption[])[];
  readonly bytes: number;
  readonly loss: number;
}

export interface UnitBound {
  /** Bytes that can be used. */
  readonly budget: number;
  /** Loss per byte. */
  readonly multiplier: number;
  /** Lower bound of the loss: the least of Σ loss + multiplier (Σ bytes - budget) under the first rules. */
  readonly value: number;
  /** A choice within the budget that meets all rules, where one was found. */
  readonly answer: Relaxed | undefined;
}

/** What is minimised: the sum of losses and `multiplier` times bytes, or bytes. */
type Aim = { readonly multiplier: number } | "bytes";

/**
 * The choice that is best for `aim` under the first rule of every group, exactly; of equal ones the one with fewer bytes, and
 * for `bytes` that with less loss.
 */
export function relaxUnits(groups: readonly PreparedGroup[], aim: Aim): Relaxed {
  let [bytes, loss] = [0, 0];
  const chosen = groups.map((group) => relaxGroup(group, aim));
  for (const options of chosen) {
    for (const option of options) {
      bytes += option.bytes;
      loss += option.loss;
    }
  }
  return { groups: chosen, bytes, loss };
}

function relaxGroup({ units, rules: [rule] }: PreparedGroup, aim: Aim): PreparedOption[] {
  if (!rule) return units.map((unit) => bestOf(unit, aim).option as PreparedOption);
  const counted = units.map((unit) => bestOf(unit, aim, 1));
  const others = units.map((unit) => bestOf(unit, aim, 0));
  // What being counted costs; a unit that has no choice stands at either end.
  const cost = (u: number) => (counted[u] as Best).value - (others[u] as Best).value;
  const order = units.map((_, u) => u).sort((a, b) => cost(a) - cost(b) || a - b);
  const wanted = order.filter((u) => cost(u) < 0).length;
  const count = Math.max(rule.least, Math.min(rule.most, wanted));
  const chosen = units.map((_, u) => (others[u] as Best).option);
  for (const u of order.slice(0, count)) chosen[u] = (counted[u] as Best).option;
  return chosen as PreparedOption[];
}

interface Best {
  /** Undefined where there is no such option; its value is infinite. */
  readonly option: PreparedOption | undefined;
  readonly value: number;
}

/** The best of all options, or of those that the first rule counts (1) or does not count (0). */
function bestOf({ options }: PreparedUnit, aim: Aim, counted?: 0 | 1): Best {
  let best: PreparedOption | undefined;
  let value = Number.POSITIVE_INFINITY;
  for (const option of options) {
    if (counted !== undefined && (option.rules & 1) !== counted) continue;
    const own = aim === "bytes" ? option.bytes : option.loss + aim.multiplier * option.bytes;
    if (own > value || (own === value && (aim !== "bytes" || option.loss >= (best as PreparedOption).loss)))
      continue;
    best = option;
    value = own;
  }
  return { option: best, value };
}

/** Far more than it takes: every step ends at another corner of the lower hull of (bytes, loss). */
const stepLimit = 200;

/**
 * The best multiplier, by the line through a choice that fits and one that does not until no choice is below that line.
 * @param least the choice of the fewest bytes, which fits
 */
export function boundUnits(groups: readonly PreparedGroup[], budget: number, least: Relaxed): UnitBound {
  let [multiplier, value] = [0, 0];
  let fitting = least;
  let larger = relaxUnits(groups, { multiplier: 0 });
  if (larger.bytes <= budget) {
    fitting = larger;
    value = larger.loss;
  } else {
    for (let step = 0; step < stepLimit; step++) {
      multiplier = (fitting.loss - larger.loss) / (larger.bytes - fitting.bytes);
      const between = relaxUnits(groups, { multiplier });
      const total = between.loss + multiplier * between.bytes;
      value = total - multiplier * budget;
      const line = fitting.loss + multiplier * fitting.bytes;
      if (total >= line - 1e-13 * (Math.abs(line) + multiplier * budget)) break;
      if (between.bytes <= budget) fitting = between;
      else larger = between;
    }
  }
  const answer = filledUp(groups, fitting, budget);
  return { budget, multiplier, value, answer: meetsAll(groups, answer) ? answer : undefined };
}

/**
 * Spends what is left of the budget: swaps options for others with less loss that fit and that the same rules count, those
 * first that gain most per byte, until nothing fits any more.
 */
function filledUp(groups: readonly PreparedGroup[], from: Relaxed, budget: number): Relaxed {
  const chosen = from.groups.map((options) => [...options]);
  let [bytes, loss] = [from.bytes, from.loss];
  for (let changed = true; changed; ) {
    changed = false;
    const room = budget - bytes;
    const swaps = groups.flatMap(({ units }, g) =>
      units.flatMap(({ options }, unit) => {
        const row = chosen[g] as PreparedOption[];
        const old = row[unit] as PreparedOption;
        return options.flatMap((option) => {
          const [gain, more] = [old.loss - option.loss, option.bytes - old.bytes];
          return gain > 0 && more <= room && option.rules === old.rules
            ? [{ row, unit, old, option, rate: gain / more }]
            : [];
        });
      }),
    );
    swaps.sort((a, b) => b.rate - a.rate);
    for (const { row, unit, old, option } of swaps) {
      // All swaps of a unit are from what it had at first.
      if (row[unit] !== old || bytes + option.bytes - old.bytes > budget) continue;
      row[unit] = option;
      bytes += option.bytes - old.bytes;
      loss += option.loss - old.loss;
      changed = true;
    }
  }
  return { groups: chosen, bytes, loss };
}

function meetsAll(groups: readonly PreparedGroup[], answer: Relaxed): boolean {
  return groups.every(({ rules }, g) =>
    rules.every(({ least, most }, r) => {
      const count = (answer.groups[g] ?? []).filter((option) => (option.rules >> r) & 1).length;
      return count >= least && count <= most;
    }),
  );
}
