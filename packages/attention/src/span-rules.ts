import { type AttentionPlan, type SpanRule, spanTokens } from "@coppice/core";

export interface RuleGrid {
  readonly blockSize: number;
  readonly sinks: number;
  /** Context lengths of the profile, ascending. */
  readonly lengths: readonly number[];
  /** The longest context that the plan may be used at. */
  readonly longest: number;
}

/** Shares of the context; eighths as published, and two smaller ones for heads that look at little. */
const betas = [0, 1 / 32, 1 / 16, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1];

/**
 * The rules that heads choose from: alpha from minus the shortest length to the longest of the profile in steps of half the
 * shortest, and beta as above, of which those stay that see something of the shortest context and no more than there is of the
 * longest (the authors' code of MoA, arXiv 2406.14909, has steps of 1024 tokens for lengths from 2048). Rules that no
 * length tells apart count once. Sorted by what they see of the longest context; the last one is dense.
 */
export function spanRules(grid: RuleGrid): SpanRule[] {
  const { lengths, longest } = grid;
  const [shortest, last] = [lengths[0] as number, lengths.at(-1) as number];
  const step = shortest / 2;
  const all = [...lengths, longest];
  const rules = new Map<string, SpanRule>();
  const add = (rule: SpanRule) => {
    const key = all.map((length) => seenTokens(grid, rule, length)).join();
    if (!rules.has(key)) rules.set(key, rule);
  };
  add({ alpha: 0, beta: 1 });
  for (let alpha = -shortest; alpha <= last; alpha += step) {
    for (const beta of betas) {
      const span = (length: number) => alpha + beta * length;
      if (span(shortest) > 0 && span(last) <= last && span(longest) <= longest) add({ alpha, beta });
    }
  }
  for (const blocks of [1, 2, 4]) add({ alpha: grid.sinks + blocks * grid.blockSize, beta: 0 });
  return [...rules.values()].sort((a, b) => span(grid, a) - span(grid, b));
}

function span(grid: RuleGrid, rule: SpanRule): number {
  return seenTokens(grid, rule, grid.longest);
}

/** Tokens of a context that a head sees by a rule, and keeps in its cache. */
export function seenTokens(
  plan: Pick<AttentionPlan, "blockSize" | "sinks">,
  rule: SpanRule,
  length: number,
): number {
  return Math.min(spanTokens(plan, rule, length), length);
}
