/**
 * Which rule every head gets. Costs depend on the rule alone, as a span costs any head the same memory; what it loses depends
 * on the head.
 */
export interface SpanProgram {
  /** Heads of every layer; heads are numbered through all layers, H in all. */
  readonly layers: readonly number[];
  /** [H, R], what a head loses by a rule; finite; losses of heads add up. */
  readonly losses: Float64Array;
  /** [R, K], what a rule takes of every budget: whole numbers of at least 0, such as blocks at K lengths. */
  readonly costs: Float64Array;
  /** [K], the most that the rules of all heads may take together; above 0. */
  readonly budgets: readonly number[];
  /** How many different rules the heads of one layer may have: 1, 2, or any number when absent. */
  readonly rulesPerLayer?: 1 | 2;
}

/** Numbers of a program in the form that its solver works with. */
export interface PreparedProgram {
  readonly heads: number;
  readonly rules: number;
  readonly budgetCount: number;
  readonly losses: Float64Array;
  /** [R, K], as shares of the budgets: they may add up to 1. */
  readonly shares: Float64Array;
  /** First head of every layer, and H at the end. */
  readonly starts: readonly number[];
  /** Sets of rules, one of which every layer uses; a layer need not use all of its set. */
  readonly sets: readonly (readonly number[])[];
}

/** Sums of shares may be above 1 by this, which is far less than one block's share. */
export const shareTolerance = 1e-9;

export function prepareProgram(program: SpanProgram): PreparedProgram {
  const { layers, losses, costs, budgets, rulesPerLayer } = program;
  const budgetCount = budgets.length;
  const starts = [0];
  for (const heads of layers) starts.push((starts.at(-1) as number) + heads);
  const rules = costs.length / budgetCount;
  return {
    heads: starts.at(-1) as number,
    rules,
    budgetCount,
    losses,
    shares: costs.map((cost, i) => cost / (budgets[i % budgetCount] as number)),
    starts,
    // So few heads have no more rules anyway.
    sets: ruleSets(rules, layers.every((n) => n <= (rulesPerLayer ?? 0)) ? undefined : rulesPerLayer),
  };
}

function ruleSets(rules: number, perLayer: 1 | 2 | undefined): number[][] {
  const all = Array.from({ length: rules }, (_, r) => r);
  if (perLayer === undefined) return [all];
  if (perLayer === 1 || rules === 1) return all.map((r) => [r]);
  return all.flatMap((a) => all.slice(a + 1).map((b) => [a, b]));
}

/** A rule for every head. */
export interface SpanAnswer {
  /** [H] */
  readonly choice: Int32Array;
  /** Per layer, the set that its rules are of. */
  readonly sets: Int32Array;
  /** [K], shares of the budgets that are taken. */
  readonly taken: Float64Array;
  readonly loss: number;
}

/** Works out what a choice takes and loses. */
export function answerOf(program: PreparedProgram, choice: Int32Array, sets: Int32Array): SpanAnswer {
  const { rules, budgetCount, losses, shares } = program;
  const taken = new Float64Array(budgetCount);
  let loss = 0;
  for (let h = 0; h < choice.length; h++) {
    const rule = choice[h] as number;
    loss += losses[h * rules + rule] as number;
    for (let k = 0; k < budgetCount; k++)
      taken[k] = (taken[k] as number) + (shares[rule * budgetCount + k] as number);
  }
  return { choice, sets, taken, loss };
}

export function fits(taken: Float64Array): boolean {
  return taken.every((share) => share <= 1 + shareTolerance);
}
