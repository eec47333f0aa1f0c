import { CoppiceError } from "@coppice/core";
import { branch } from "./span-branch.js";
import { fitSpans } from "./span-fit.js";
import {
  answerOf,
  fits,
  type PreparedProgram,
  prepareProgram,
  type SpanAnswer,
  type SpanProgram,
} from "./span-program.js";
import { bestBound, relax } from "./span-relaxation.js";
import { improve, repair } from "./span-repair.js";

export type { SpanProgram } from "./span-program.js";

export interface SpanSolution {
  /** [H], the rule of every head. */
  readonly choice: Int32Array;
  /** Sum over all heads. */
  readonly loss: number;
  /** No choice within the budgets loses less; equal to `loss` when `optimal`. */
  readonly bound: number;
  /** True when the loss was proven to be the least possible. */
  readonly optimal: boolean;
}

/** Relaxed choices that are repaired while prices are searched: each of so many steps. */
const repairEvery = 6;
/** Repaired choices that are improved. */
const improvedAnswers = 4;

/**
 * Chooses rules so that the sum of losses is small within all budgets, by Lagrangian relaxation: prices on the budgets give a
 * lower bound (exact for every price, the limit of rules per layer included) and choices that almost fit, which are
 * repaired and improved; branch and bound closes the gap where the program is small. Deterministic.
 * @returns undefined when no choice fits
 * @throws COPPICE_USAGE for numbers that are no program; COPPICE_INTERNAL when it is not known whether a choice fits
 */
export function solveSpans(program: SpanProgram): SpanSolution | undefined {
  checkProgram(program);
  const prepared = prepareProgram(program);
  const free = relax(prepared, new Float64Array(prepared.budgetCount));
  if (fits(free.taken)) return { choice: free.choice, loss: free.loss, bound: free.loss, optimal: true };
  const answers = new Answers();
  // Before an answer is known, the largest losses stand for it.
  const most = worstLoss(prepared);
  let steps = 0;
  const bound = bestBound(prepared, most, (relaxed) => {
    if (steps++ % repairEvery === 0 || fits(relaxed.taken)) answers.add(repair(prepared, relaxed));
    return answers.best?.loss ?? most;
  });
  if (!answers.best) {
    const { choice, complete } = fitSpans(program);
    if (choice) answers.add(answerOf(prepared, choice, setsOf(prepared, choice)));
    else if (complete) return undefined;
    else throw undecided(program);
  }
  for (const answer of answers.list) answers.add(improve(prepared, answer, bound.prices));
  const { answer, complete } = branch(prepared, bound.prices, answers.best as SpanAnswer);
  const { choice, loss } = answer;
  return { choice, loss, bound: complete ? loss : Math.min(bound.value, loss), optimal: complete };
}

function undecided({ budgets }: SpanProgram): CoppiceError {
  return new CoppiceError(
    "COPPICE_INTERNAL",
    `no rules were found that fit ${budgets.join(", ")} blocks, and not everything could be tried`,
    { hint: "raise the density a little" },
  );
}

function worstLoss({ heads, rules, losses }: PreparedProgram): number {
  let sum = 0;
  for (let h = 0; h < heads; h++) sum += Math.max(...losses.subarray(h * rules, (h + 1) * rules));
  return sum;
}

/** The best few different answers. */
class Answers {
  list: SpanAnswer[] = [];

  get best(): SpanAnswer | undefined {
    return this.list[0];
  }

  add(answer: SpanAnswer | undefined): void {
    if (!answer || this.list.some(({ loss }) => loss === answer.loss)) return;
    this.list = [...this.list, answer].sort((a, b) => a.loss - b.loss).slice(0, improvedAnswers);
  }
}

/** A set of rules for every layer that holds those chosen. */
function setsOf({ starts, sets }: PreparedProgram, choice: Int32Array): Int32Array {
  return Int32Array.from({ length: starts.length - 1 }, (_, layer) => {
    const own = choice.subarray(starts[layer], starts[layer + 1]);
    return sets.findIndex((set) => own.every((rule) => set.includes(rule)));
  });
}

function checkProgram({ layers, losses, costs, budgets, rulesPerLayer }: SpanProgram): void {
  const heads = layers.reduce((sum, n) => sum + n, 0);
  const rules = costs.length / budgets.length;
  const wrong = (what: string) => new CoppiceError("COPPICE_USAGE", `not a program of spans: ${what}`);
  if (!layers.every((n) => Number.isInteger(n) && n > 0))
    throw wrong(`layers have ${layers.join(", ")} heads; expected whole numbers above 0`);
  if (!Number.isInteger(rules) || rules === 0 || losses.length !== heads * rules)
    throw wrong(
      `${losses.length} losses and ${costs.length} costs for ${heads} heads and ${budgets.length} budgets`,
    );
  const loss = losses.find((value) => !Number.isFinite(value));
  if (loss !== undefined) throw wrong(`a loss is ${loss}; expected a finite number`);
  const cost = costs.find((value) => !Number.isInteger(value) || value < 0);
  if (cost !== undefined) throw wrong(`a cost is ${cost}; expected whole numbers of at least 0`);
  const budget = budgets.find((value) => !(value > 0 && value < Number.POSITIVE_INFINITY));
  if (budget !== undefined) throw wrong(`a budget is ${budget}; expected a finite number above 0`);
  if (rulesPerLayer !== undefined && rulesPerLayer !== 1 && rulesPerLayer !== 2)
    throw wrong(`${rulesPerLayer} rules per layer; expected 1 or 2`);
}
