import type { SpanProgram } from "./span-program.js";

/** What some layers take of all budgets, and how. */
interface Taken {
  readonly sums: readonly number[];
  readonly before: Taken | undefined;
  /** Rules of the heads of the last of these layers, with how many heads have them. */
  readonly counts: readonly (readonly [rule: number, heads: number])[];
}

export interface FittedSpans {
  /** [H], rules that fit; absent: there are none, or none was found. */
  readonly choice?: Int32Array;
  /** True when everything was looked at that matters. */
  readonly complete: boolean;
}

/** Sums that are kept per layer. More need rules of very different lengths that are hard to fit; see `complete`. */
const keptSums = 20_000;

/**
 * Finds rules that fit the budgets, whatever they lose, if there are any. As costs do not depend on the head, it is enough
 * to know how many heads of each layer have which rule: layer by layer all sums are kept that are not more in every budget
 * than another.
 */
export function fitSpans({ layers, costs, budgets, rulesPerLayer }: SpanProgram): FittedSpans {
  const budgetCount = budgets.length;
  const cost = (rule: number) => costs.subarray(rule * budgetCount, (rule + 1) * budgetCount);
  const rules = Array.from({ length: costs.length / budgetCount }, (_, rule) => rule);
  const useful = leastOnly(rules.map((rule) => ({ rule, sums: Array.from(cost(rule)) }))).map(
    ({ rule }) => rule,
  );
  // Without a limit per layer every head can choose for itself.
  const parts = rulesPerLayer === undefined ? layers.flatMap((n) => Array<number>(n).fill(1)) : layers;
  const least = budgets.map((_, k) => Math.min(...useful.map((rule) => cost(rule)[k] as number)));
  let left = parts.reduce((sum, heads) => sum + heads, 0);
  let complete = true;
  let states: Taken[] = [{ sums: budgets.map(() => 0), before: undefined, counts: [] }];
  const options = new Map<number, Taken[]>();
  for (const heads of parts) {
    left -= heads;
    const own = options.get(heads) ?? layerOptions(heads, useful, cost, rulesPerLayer ?? 1);
    options.set(heads, own);
    const next: Taken[] = [];
    const seen = new Set<string>();
    for (const before of states) {
      for (const { sums, counts } of own) {
        const together = sums.map((sum, k) => sum + (before.sums[k] as number));
        if (together.some((sum, k) => sum + left * (least[k] as number) > (budgets[k] as number))) continue;
        const key = together.join();
        if (seen.has(key)) continue;
        seen.add(key);
        next.push({ sums: together, before, counts });
      }
      if (next.length > 40 * keptSums) break;
    }
    states = leastOnly(next);
    if (states.length > keptSums) {
      complete = false;
      const worst = ({ sums }: Taken) =>
        Math.max(...sums.map((sum, k) => (sum + left * (least[k] as number)) / (budgets[k] as number)));
      states = states.sort((a, b) => worst(a) - worst(b)).slice(0, keptSums);
    }
  }
  const [found] = states;
  if (!found) return { complete };
  const rulesOf: number[][] = [];
  for (let state: Taken = found; state.before; state = state.before)
    rulesOf.unshift(state.counts.flatMap(([rule, heads]) => Array<number>(heads).fill(rule)));
  return { choice: Int32Array.from(rulesOf.flat()), complete };
}

/** What the heads of a layer can take together. */
function layerOptions(
  heads: number,
  rules: readonly number[],
  cost: (rule: number) => Float64Array,
  perLayer: 1 | 2,
): Taken[] {
  const option = (counts: readonly (readonly [number, number])[]): Taken => ({
    before: undefined,
    counts,
    sums: Array.from(cost(0), (_, k) =>
      counts.reduce((sum, [rule, n]) => sum + n * (cost(rule)[k] as number), 0),
    ),
  });
  const options = rules.map((rule) => option([[rule, heads]]));
  if (perLayer === 2) {
    for (const [i, a] of rules.entries()) {
      for (const b of rules.slice(i + 1)) {
        for (let n = 1; n < heads; n++)
          options.push(
            option([
              [a, n],
              [b, heads - n],
            ]),
          );
      }
    }
  }
  return leastOnly(options);
}

/** Those that are not at least another in every budget. */
function leastOnly<T extends { readonly sums: readonly number[] }>(items: readonly T[]): T[] {
  const order = [...items].sort((a, b) => {
    for (let k = 0; k < a.sums.length; k++) {
      const difference = (a.sums[k] as number) - (b.sums[k] as number);
      if (difference !== 0) return difference;
    }
    return 0;
  });
  const kept: T[] = [];
  for (const item of order) {
    if (!kept.some(({ sums }) => sums.every((sum, k) => sum <= (item.sums[k] as number)))) kept.push(item);
  }
  return kept;
}
