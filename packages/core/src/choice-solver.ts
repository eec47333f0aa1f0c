/**
 * Solves programs of choices by itself, where a package's own solver is not wanted. Created by a plugin of kind "solver".
 */
export interface ChoiceSolver {
  /**
   * Blocks until it is done.
   * @returns undefined when no choice fits, which is proven
   * @throws COPPICE_USAGE for what is no program, COPPICE_SOLVER_LIMIT when the program is too large, or nothing was found in time
   */
  solve(program: ChoiceProgram): ChoiceSolution | undefined;
}

/**
 * One option for every unit, such that the sum of losses is the least possible within all budgets: a multiple-choice knapsack
 * with rules for groups of units.
 */
export interface ChoiceProgram {
  readonly groups: readonly ChoiceGroup[];
  /** [K], the most that the chosen options take together. */
  readonly budgets: readonly number[];
}

/** Units that rules hold for together, such as the heads or the experts of a layer. */
export interface ChoiceGroup {
  /** At least one option for each. */
  readonly units: readonly (readonly ChoiceOption[])[];
  /**
   * How many different options, told apart by their places, the units may have together; all have as many options then.
   * Default: any number.
   */
  readonly different?: number;
  readonly counts?: readonly ChoiceCount[];
}

export interface ChoiceOption {
  /** Finite: smaller is better. */
  readonly loss: number;
  /** [K], what it takes of every budget: finite, at least 0. */
  readonly costs: readonly number[];
}

/** How many units of a group may, or must, get an option of some kind. */
export interface ChoiceCount {
  counts(unit: number, option: number): boolean;
  /** Default 0. */
  readonly least?: number;
  /** Default: all. */
  readonly most?: number;
}

export interface ChoiceSolution {
  /** Per group, the place of every unit's option. */
  readonly groups: readonly (readonly number[])[];
  /** Sum over all units. */
  readonly loss: number;
  /** No choice within the budgets loses less; equal to `loss` when `optimal`. */
  readonly bound: number;
  readonly optimal: boolean;
}
