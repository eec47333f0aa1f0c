import { answerOf, type PreparedProgram, type SpanAnswer, shareTolerance } from "./span-program.js";
import { layerColumns, pricedLosses, setValue } from "./span-relaxation.js";

/** Choices of rules that are tried before the search is given up. */
const nodeLimit = 400_000;

export interface Branched {
  /** The given answer or a better one. */
  readonly answer: SpanAnswer;
  /** True when there is no better one. */
  readonly complete: boolean;
}

/**
 * Branch and bound: layer by layer a set of rules, head by head a rule. What is left open counts its least priced loss, less
 * the price of the budgets; branches that do not promise a smaller loss than the best answer, or do not fit, are cut.
 */
export function branch(program: PreparedProgram, prices: Float64Array, start: SpanAnswer): Branched {
  const { heads, rules, budgetCount, shares, starts, sets } = program;
  const layers = starts.length - 1;
  const priced = pricedLosses(program, prices);
  const price = prices.reduce((sum, value) => sum + value, 0);
  const leastShares = Float64Array.from({ length: budgetCount }, (_, k) =>
    Math.min(...Array.from({ length: rules }, (_, r) => shares[r * budgetCount + k] as number)),
  );
  const ordered = Array.from({ length: layers }, (_, layer) => {
    const columns = layerColumns(program, priced, layer);
    return sets
      .map((set, s) => ({ s, value: setValue(columns, rules, set) }))
      .sort((a, b) => a.value - b.value);
  });
  // Least priced loss of this layer and those behind it.
  const rest = new Float64Array(layers + 1);
  for (let layer = layers - 1; layer >= 0; layer--)
    rest[layer] = (rest[layer + 1] as number) + (ordered[layer]?.[0]?.value as number);

  const choice = new Int32Array(heads);
  const chosenSets = new Int32Array(layers);
  const taken = new Float64Array(budgetCount);
  let answer = start;
  let nodes = 0;
  const limit = () => answer.loss - 1e-12 * Math.abs(answer.loss);

  const openLayer = (layer: number, sum: number): void => {
    if (layer === layers) {
      const found = answerOf(program, choice.slice(), chosenSets.slice());
      if (found.loss < limit()) answer = found;
      return;
    }
    const [from, to] = [starts[layer] as number, starts[layer + 1] as number];
    for (const { s, value } of ordered[layer] ?? []) {
      const behind = rest[layer + 1] as number;
      if (sum + value + behind - price >= limit() || nodes > nodeLimit) return;
      chosenSets[layer] = s;
      const set = sets[s] as readonly number[];
      // Least priced loss of the heads behind, within the set.
      const inSet = new Float64Array(to - from + 1);
      for (let h = to - 1; h >= from; h--) {
        let least = Number.POSITIVE_INFINITY;
        for (const rule of set) least = Math.min(least, priced[h * rules + rule] as number);
        inSet[h - from] = (inSet[h - from + 1] as number) + least;
      }
      openHead(from, sum, layer, to, set, inSet, behind);
    }
  };
  const openHead = (
    head: number,
    sum: number,
    layer: number,
    to: number,
    set: readonly number[],
    inSet: Float64Array,
    behind: number,
  ): void => {
    if (head === to) {
      openLayer(layer + 1, sum);
      return;
    }
    const row = head * rules;
    const order =
      set.length === 1
        ? set
        : [...set].sort((a, b) => (priced[row + a] as number) - (priced[row + b] as number));
    const later = inSet[inSet.length - (to - head)] as number;
    for (const rule of order) {
      if (++nodes > nodeLimit) return;
      const own = sum + (priced[row + rule] as number);
      if (own + later + behind - price >= limit()) return;
      let fitting = true;
      for (let k = 0; k < budgetCount; k++) {
        taken[k] = (taken[k] as number) + (shares[rule * budgetCount + k] as number);
        const open = (heads - head - 1) * (leastShares[k] as number);
        fitting &&= (taken[k] as number) + open <= 1 + shareTolerance;
      }
      if (fitting) {
        choice[head] = rule;
        openHead(head + 1, own, layer, to, set, inSet, behind);
      }
      for (let k = 0; k < budgetCount; k++)
        taken[k] = (taken[k] as number) - (shares[rule * budgetCount + k] as number);
    }
  };
  openLayer(0, 0);
  return { answer, complete: nodes <= nodeLimit };
}
