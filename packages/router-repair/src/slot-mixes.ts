import { downDelta, type LayerPlan, type UnitSource } from "@coppice/core";

/** What the output of each slot is made of. */
export interface SlotMixes {
  /** [slots][experts]: the output of slot i is the sum over j of `rows[i][j]` f_j. */
  readonly rows: readonly (readonly number[])[];
  /** False where a slot is merged or its down projection changed: its output is not that sum, which stands for it. */
  readonly exact: boolean;
}

/**
 * Slots as sums of the outputs of original experts. A kept expert is itself. The output of experts whose weights were
 * merged is in general no such sum; it is taken to be the mean of its members' outputs with the weights of the merge, which
 * holds as far as the merged experts are alike. Of a slot that is put together from hidden units, an expert's share is the
 * sum of the factors of its units' columns over the width. Of changed down projections the sample shows nothing: such a slot
 * is taken to be what it would be without the change.
 * @param experts E of the layer
 */
export function slotMixes(plan: LayerPlan, experts: number): SlotMixes {
  let exact = true;
  const rows = plan.experts.map((expert, slot) => {
    const own = Array.from({ length: experts }, (_, j) => (j === expert ? 1 : 0));
    const units = plan.units?.[slot];
    const row = units ? unitShares(units, experts) : (plan.merge?.[slot] ?? own);
    if (row.some((share, j) => share !== own[j]) || downDelta(plan, slot)) exact = false;
    return row;
  });
  return { rows, exact };
}

function unitShares(sources: readonly UnitSource[], experts: number): number[] {
  const shares = new Array<number>(experts).fill(0);
  for (const { expert, to, columns } of sources) {
    const sum = to.reduce((total, target, unit) => {
      if (target < 0) return total;
      return total + (typeof columns === "number" ? columns : (columns[unit] as number));
    }, 0);
    shares[expert] = (shares[expert] as number) + sum / to.length;
  }
  return shares;
}
