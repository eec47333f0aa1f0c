import { type ChoiceProgram, CoppiceError } from "@coppice/core";

/** Checks numbers. @returns how many variables the program takes. @throws COPPICE_USAGE */
export function checkProgram({ groups, budgets }: ChoiceProgram): number {
  const wrong = (what: string) => new CoppiceError("COPPICE_USAGE", `not a program of choices: ${what}`);
  const budget = budgets.find((value) => !Number.isFinite(value));
  if (budget !== undefined) throw wrong(`a budget is ${budget}; expected a finite number`);
  let size = 0;
  groups.forEach(({ units, different }, g) => {
    units.forEach((options, u) => {
      const where = `unit ${u} of group ${g}`;
      if (options.length === 0) throw wrong(`${where} has no option`);
      for (const { loss, costs } of options) {
        if (!Number.isFinite(loss)) throw wrong(`${where} has a loss of ${loss}; expected a finite number`);
        if (costs.length !== budgets.length)
          throw wrong(`${where} has ${costs.length} costs for ${budgets.length} budgets`);
        const cost = costs.find((value) => !(value >= 0 && value < Number.POSITIVE_INFINITY));
        if (cost !== undefined)
          throw wrong(`${where} has a cost of ${cost}; expected a finite number of at least 0`);
      }
      size += options.length;
    });
    if (different === undefined) return;
    const widths = new Set(units.map((options) => options.length));
    if (!Number.isSafeInteger(different) || different < 1 || widths.size > 1) {
      throw wrong(
        `group ${g} may have ${different} different options, its units have ${[...widths].join(" or ")}; expected at least 1, and ` +
          "as many options for every unit",
      );
    }
    size += units[0]?.length ?? 0;
  });
  return size;
}
