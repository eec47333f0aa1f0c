import { type MoeModel, moeLayers } from "@coppice/core";
import { groupedSlots } from "./normal-equations.js";
import { defaultGrids, type FitChoice } from "./reconstruct.js";

/**
 * Multiplications that the solutions of a reconstruction take, which outgrow everything else in large models: per layer, choice
 * and group of slots n³ / 6 for the factor and hidden * n² for the solutions, n unknowns per output. Plain JavaScript does some
 * 10⁹ a second.
 * @param slots experts that every layer keeps
 * @param folds fits per layer and choice
 */
export function solvingCost(
  model: MoeModel,
  {
    slots,
    folds = 1,
    grids = defaultGrids,
  }: { readonly slots: number; readonly folds?: number; readonly grids?: readonly (readonly FitChoice[])[] },
): number {
  const solutions = folds * grids.flat().filter((choice) => choice !== null).length;
  return moeLayers(model).reduce((sum, { feedForward }) => {
    const width = feedForward.experts[0]?.width ?? 0;
    const groups = groupedSlots(Math.min(slots, feedForward.experts.length), width);
    const cost = groups.reduce((all, group) => {
      const n = group.length * width;
      return all + n ** 3 / 6 + model.hiddenSize * n ** 2;
    }, 0);
    return sum + solutions * cost;
  }, 0);
}
