import { answerOf, fits, type PreparedProgram, type SpanAnswer } from "./span-program.js";

/** The best choice when budgets have prices instead of limits. */
export interface Relaxed extends SpanAnswer {
  /** Lower bound of the loss of every choice within the budgets. */
  readonly bound: number;
}

/** Loss of every head and rule with its prices, [H, R]. */
export function pricedLosses(program: PreparedProgram, prices: Float64Array): Float64Array {
  const { heads, rules, budgetCount, losses, shares } = program;
  const ruleCosts = new Float64Array(rules);
  for (let r = 0; r < rules; r++) {
    for (let k = 0; k < budgetCount; k++)
      ruleCosts[r] =
        (ruleCosts[r] as number) + (prices[k] as number) * (shares[r * budgetCount + k] as number);
  }
  const priced = new Float64Array(heads * rules);
  for (let i = 0; i < priced.length; i++)
    priced[i] = (losses[i] as number) + (ruleCosts[i % rules] as number);
  return priced;
}

/** Priced losses of a layer with those of one rule side by side, [R, heads of the layer]: sums over sets read whole rows. */
export function layerColumns(
  { rules, starts }: Pick<PreparedProgram, "rules" | "starts">,
  priced: Float64Array,
  layer: number,
): Float64Array {
  const from = starts[layer] as number;
  const heads = (starts[layer + 1] as number) - from;
  const columns = new Float64Array(heads * rules);
  for (let h = 0; h < heads; h++)
    for (let r = 0; r < rules; r++) columns[r * heads + h] = priced[(from + h) * rules + r] as number;
  return columns;
}

/** The sum over the heads of a layer of the least priced loss among the rules of a set. */
export function setValue(columns: Float64Array, rules: number, set: readonly number[]): number {
  const heads = columns.length / rules;
  let sum = 0;
  if (set.length === 2) {
    const [a, b] = [(set[0] as number) * heads, (set[1] as number) * heads];
    for (let h = 0; h < heads; h++) {
      const [x, y] = [columns[a + h] as number, columns[b + h] as number];
      sum += Math.min(x, y);
    }
    return sum;
  }
  for (let h = 0; h < heads; h++) {
    let least = Number.POSITIVE_INFINITY;
    for (const rule of set) least = Math.min(least, columns[rule * heads + h] as number);
    sum += least;
  }
  return sum;
}

/** The rule of a set with the least priced loss for the head whose values begin at `row`. */
export function leastOf(priced: Float64Array, row: number, set: readonly number[]): number {
  let best = set[0] as number;
  for (const rule of set) if ((priced[row + rule] as number) < (priced[row + best] as number)) best = rule;
  return best;
}

/** Exact: every layer takes the set, and every head the rule of it, with the least priced loss. */
export function relax(program: PreparedProgram, prices: Float64Array): Relaxed {
  const { heads, rules, starts, sets } = program;
  const priced = pricedLosses(program, prices);
  const choice = new Int32Array(heads);
  const chosenSets = new Int32Array(starts.length - 1);
  let bound = -prices.reduce((sum, price) => sum + price, 0);
  for (let layer = 0; layer < chosenSets.length; layer++) {
    let [best, least] = [0, Number.POSITIVE_INFINITY];
    const columns = layerColumns(program, priced, layer);
    sets.forEach((set, s) => {
      const value = setValue(columns, rules, set);
      if (value < least) [best, least] = [s, value];
    });
    bound += least;
    chosenSets[layer] = best;
    const set = sets[best] as readonly number[];
    for (let h = starts[layer] as number; h < (starts[layer + 1] as number); h++)
      choice[h] = leastOf(priced, h * rules, set);
  }
  return { ...answerOf(program, choice, chosenSets), bound };
}

/** Steps of the search for prices, and after how many without a better bound steps get half as long. */
const stepLimit = 240;
const patience = 8;

export interface Bound {
  readonly value: number;
  /** [K], of the best bound. */
  readonly prices: Float64Array;
}

/**
 * The prices with the best bound, by subgradient steps with Polyak's length: (answer - bound) / |gradient|², times a factor
 * that shrinks.
 * @param answerLoss the least loss known of a choice that fits
 * @param onStep sees every relaxed choice, and says what is the least loss then
 */
export function bestBound(
  program: PreparedProgram,
  answerLoss: number,
  onStep: (relaxed: Relaxed, prices: Float64Array) => number,
): Bound {
  const { budgetCount } = program;
  let prices: Float64Array = new Float64Array(budgetCount);
  let best: Bound = { value: Number.NEGATIVE_INFINITY, prices };
  let known = answerLoss;
  let [factor, stale] = [1, 0];
  for (let step = 0; step < stepLimit; step++) {
    const relaxed = relax(program, prices);
    known = onStep(relaxed, prices);
    if (relaxed.bound > best.value) {
      best = { value: relaxed.bound, prices };
      stale = 0;
    } else if (++stale >= patience) {
      factor /= 2;
      stale = 0;
      prices = best.prices;
      continue;
    }
    // What fits at no price cannot be improved on.
    if (fits(relaxed.taken) && prices.every((price) => price === 0)) break;
    if (known - best.value <= 1e-12 * Math.abs(known)) break;
    let square = 0;
    for (let k = 0; k < budgetCount; k++) {
      const over = (relaxed.taken[k] as number) - 1;
      if (over > 0 || (prices[k] as number) > 0) square += over * over;
    }
    if (square === 0) break;
    const length = (factor * Math.max(known - relaxed.bound, 1e-12 * Math.abs(known))) / square;
    prices = prices.map((price, k) => Math.max(0, price + length * ((relaxed.taken[k] as number) - 1)));
  }
  return best;
}
