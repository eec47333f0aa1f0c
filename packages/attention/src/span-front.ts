import { throwIfAborted } from "@coppice/core";
import { type SpanProgram, type SpanSolution, solveSpans } from "./solve-spans.js";
import type { SpanSolver } from "./span-solver.js";

export interface FrontPoint extends SpanSolution {
  /** [K], how much each length counted. */
  readonly weights: readonly number[];
  /** [K], what the choice loses at each length. */
  readonly losses: readonly number[];
}

export interface FrontOptions {
  readonly solve?: SpanSolver;
  readonly signal?: AbortSignal;
}

/** Steps of each weight from 0 to 1: 15 points for three lengths. */
const steps = 4;

/**
 * Choices of which none loses less at every length than another: one program per point of a grid of weights over the lengths,
 * each within the budgets of all lengths. Losses of different lengths are made comparable by what all heads together lose
 * by the shortest rule there. Those that lose least, in the mean of all lengths, come first.
 * @param losses [K][H, R]
 * @returns none when no choice fits
 */
export function spanFront(
  program: Omit<SpanProgram, "losses">,
  losses: readonly Float64Array[],
  { solve = solveSpans, signal }: FrontOptions = {},
): FrontPoint[] {
  const rules = program.costs.length / program.budgets.length;
  const sizes = losses.map((own) => largestLosses(own, rules));
  const points: FrontPoint[] = [];
  for (const weights of simplex(losses.length)) {
    throwIfAborted(signal, "choosing spans");
    const mixed = new Float64Array(losses[0]?.length ?? 0);
    losses.forEach((own, k) => {
      const factor = (weights[k] as number) / (sizes[k] as number);
      for (let i = 0; i < mixed.length; i++) mixed[i] = (mixed[i] as number) + factor * (own[i] as number);
    });
    const solution = solve({ ...program, losses: mixed });
    if (!solution) return [];
    const { choice, loss, bound, optimal } = solution;
    const own = losses.map((of) =>
      choice.reduce((sum, rule, head) => sum + (of[head * rules + rule] as number), 0),
    );
    points.push({ choice, loss, bound, optimal, weights, losses: own });
  }
  return undominated(points).sort((a, b) => meanLoss(a) - meanLoss(b));
}

/** What a choice loses, every length counting the same. */
export function meanLoss({ losses }: Pick<FrontPoint, "losses">): number {
  return losses.reduce((sum, loss) => sum + loss, 0) / losses.length;
}

function largestLosses(losses: Float64Array, rules: number): number {
  let sum = 0;
  for (let from = 0; from < losses.length; from += rules)
    sum += Math.max(...losses.subarray(from, from + rules));
  return sum || 1;
}

/** Weights that add up to 1, those of equal shares of lengths first. */
function simplex(count: number): number[][] {
  const points: number[][] = [];
  const extend = (head: readonly number[], left: number): void => {
    if (head.length === count - 1) {
      points.push([...head, left].map((part) => part / steps));
      return;
    }
    for (let part = 0; part <= left; part++) extend([...head, part], left - part);
  };
  extend([], steps);
  const even = Array<number>(count).fill(1 / count);
  return count === 1 ? points : [even, ...points];
}

/** The first of equal ones. */
function undominated(points: readonly FrontPoint[]): FrontPoint[] {
  return points.filter((point, i) =>
    points.every((other, j) => {
      if (i === j) return true;
      const isNoWorse = other.losses.every((loss, k) => loss <= (point.losses[k] as number));
      const isSame = other.losses.every((loss, k) => loss === point.losses[k]);
      return !isNoWorse || (isSame && i < j);
    }),
  );
}
