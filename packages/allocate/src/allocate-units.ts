import { type ChoiceSolver, CoppiceError } from "@coppice/core";
import { closeGap } from "./close-gap.js";
import { solveUnits } from "./solve-units.js";
import { boundUnits, type Relaxed, relaxUnits } from "./unit-bound.js";
import { type PreparedGroup, prepareGroups } from "./unit-groups.js";

/** One way to treat a unit: a tensor or an expert at some width, a layer with some number of experts. */
export interface UnitOption {
  /** What it takes of the budget: a whole number of at least 0. */
  readonly bytes: number;
  /** What choosing it costs in quality, finite: smaller is better; losses of units add up. */
  readonly loss: number;
}

/** How many units of a group may, or must, get an option of some kind: such as one that keeps an expert. */
export interface CountRule<O extends UnitOption> {
  counts(option: O): boolean;
  /** @default 0 */
  readonly least?: number;
  /** @default all */
  readonly most?: number;
}

/** Units that rules hold for together, such as the experts of a layer. */
export interface UnitGroup<O extends UnitOption> {
  /** What messages call it. */
  readonly name: string;
  /** At least one option each. */
  readonly units: readonly (readonly O[])[];
  /** The first is the one that the lower bound knows: give first what really limits the choice. */
  readonly rules?: readonly CountRule<O>[];
}

export interface AllocateUnitsOptions {
  /** Bytes of all units together may not be more. */
  readonly budget: number;
  /** Only an answer with a smaller loss is of use: others are given up early, and null is returned. @default any */
  readonly below?: number;
  /**
   * Solves the program instead, for rules that leave the search below with a gap. Blocks; of equal losses it need not
   * choose the fewest bytes.
   */
  readonly solver?: ChoiceSolver;
}

export interface UnitAllocation<O extends UnitOption> {
  /** The chosen option of every unit of every group, in their order. */
  readonly groups: readonly (readonly O[])[];
  /** Sums over all units. */
  readonly bytes: number;
  readonly loss: number;
  /** No choice within the budget has a smaller loss. Equal to `loss`, but for rounding, when `optimal`. */
  readonly bound: number;
  /** False when the search for better ones was given up for its size: then `loss - bound` is the most that is missing. */
  readonly optimal: boolean;
}

/**
 * Chooses one option per unit so that the sum of losses is the least possible within a budget of bytes and under rules of
 * how many units of a group get what; of equal losses the fewest bytes. This is the multiple-choice knapsack with side
 * constraints; it is solved exactly in two steps. A Lagrange multiplier on the bytes gives a lower bound and, repaired, an
 * answer near it. Dynamic programming over units then keeps, for every sum of bytes, the least loss, but only partial
 * choices that the bound says can still beat that answer: with hundreds of units few can. The idea of both is Pisinger's, "A
 * minimal algorithm for the multiple-choice knapsack problem" (European Journal of Operational Research 83, 1995).
 * @returns null only when `below` was given and nothing is below it
 * @throws COPPICE_PLAN_KEEP when the budget is too small, with the least bytes, or rules contradict; COPPICE_USAGE
 */
export function allocateUnits<O extends UnitOption>(
  groups: readonly UnitGroup<O>[],
  options: AllocateUnitsOptions & { readonly below: number },
): UnitAllocation<O> | null;
export function allocateUnits<O extends UnitOption>(
  groups: readonly UnitGroup<O>[],
  options: AllocateUnitsOptions,
): UnitAllocation<O>;
export function allocateUnits<O extends UnitOption>(
  groups: readonly UnitGroup<O>[],
  { budget, below, solver }: AllocateUnitsOptions,
): UnitAllocation<O> | null {
  if (!(budget >= 0)) throw new CoppiceError("COPPICE_USAGE", `the budget is ${budget}, expected at least 0`);
  const prepared = prepareGroups(groups);
  const least = relaxUnits(prepared, "bytes");
  if (least.bytes > budget) throw tooSmall(least.bytes, budget);
  if (solver) {
    const solved = solveUnits(solver, groups, budget);
    if (!solved) throw contradiction(least.bytes, budget);
    return below === undefined || solved.loss < below ? solved : null;
  }
  const bound = boundUnits(prepared, withoutRemainder(prepared, least.bytes, budget), least);
  const start = bound.answer && (below === undefined || bound.answer.loss < below) ? bound.answer : undefined;
  const found = closeGap(prepared, bound, start, below);
  if (found.answer) return collected(groups, found.answer, found.bound);
  if (below !== undefined) return null;
  throw contradiction(least.bytes, budget, found.bound === undefined ? "" : " that could be found");
}

function contradiction(least: number, budget: number, limits = ""): CoppiceError {
  return new CoppiceError(
    "COPPICE_PLAN_KEEP",
    `no choice within ${budget} bytes meets all rules${limits}; without rules beyond the first of every group ${least} are enough`,
    { hint: "raise the budget", details: { least, budget } },
  );
}

/**
 * Sums of bytes are the least sum plus multiples of a common divisor. What a budget has beyond the last of them cannot be
 * used, and would only weaken the bound.
 */
function withoutRemainder(groups: readonly PreparedGroup[], least: number, budget: number): number {
  let [unit, largest] = [0, 0];
  for (const { units } of groups) {
    for (const { options } of units) {
      const first = options[0]?.bytes as number;
      for (const { bytes } of options) unit = commonDivisor(unit, bytes - first);
      largest += options.at(-1)?.bytes as number;
    }
  }
  const usable = Math.min(budget, largest);
  return unit === 0 ? usable : least + Math.floor((usable - least) / unit) * unit;
}

function commonDivisor(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y !== 0) [x, y] = [y, x % y];
  return x;
}

function collected<O extends UnitOption>(
  groups: readonly UnitGroup<O>[],
  answer: Relaxed,
  bound: number | undefined,
): UnitAllocation<O> {
  let [bytes, loss] = [0, 0];
  const chosen = groups.map(({ units }, g) =>
    units.map((options, u) => {
      const option = options[answer.groups[g]?.[u]?.index as number] as O;
      bytes += option.bytes;
      loss += option.loss;
      return option;
    }),
  );
  return { groups: chosen, bytes, loss, bound: bound ?? loss, optimal: bound === undefined };
}

function tooSmall(least: number, budget: number): CoppiceError {
  return new CoppiceError(
    "COPPICE_PLAN_KEEP",
    `the smallest choice takes ${least} bytes, the budget is ${budget}`,
    { hint: "raise the budget, or allow smaller choices", details: { least, budget } },
  );
}
