import type { ChoiceSolver } from "@coppice/core";
import type { UnitAllocation, UnitGroup, UnitOption } from "./allocate-units.js";

/** Solves a program of units by a plugin. @returns undefined when no choice meets all rules within the budget */
export function solveUnits<O extends UnitOption>(
  solver: ChoiceSolver,
  groups: readonly UnitGroup<O>[],
  budget: number,
): UnitAllocation<O> | undefined {
  const found = solver.solve({
    budgets: [budget],
    groups: groups.map(({ units, rules = [] }) => ({
      units: units.map((options) => options.map(({ loss, bytes }) => ({ loss, costs: [bytes] }))),
      counts: rules.map((rule) => ({
        ...rule,
        counts: (unit: number, option: number) => rule.counts(units[unit]?.[option] as O),
      })),
    })),
  });
  if (!found) return undefined;
  const { loss, bound, optimal } = found;
  const chosen = groups.map(({ units }, g) =>
    units.map((options, u) => options[found.groups[g]?.[u] as number] as O),
  );
  return {
    groups: chosen,
    bytes: chosen.flat().reduce((sum, { bytes }) => sum + bytes, 0),
    loss,
    bound,
    optimal,
  };
}
