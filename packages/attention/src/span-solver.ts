import type { ChoiceSolver } from "@coppice/core";
import { type SpanProgram, type SpanSolution, solveSpans } from "./solve-spans.js";

export type SpanSolver = (program: SpanProgram) => SpanSolution | undefined;

/** Solves programs of spans by a plugin; without one, `solveSpans` does. */
export function spanSolver(solver: ChoiceSolver | undefined): SpanSolver {
  return solver ? (program) => solveBy(solver, program) : solveSpans;
}

function solveBy(solver: ChoiceSolver, program: SpanProgram): SpanSolution | undefined {
  const { layers, losses, costs, budgets, rulesPerLayer } = program;
  const rules = costs.length / budgets.length;
  let head = 0;
  const groups = layers.map((heads) => ({
    units: Array.from({ length: heads }, () => {
      const own = losses.subarray(head * rules, ++head * rules);
      return Array.from(own, (loss, rule) => ({
        loss,
        costs: Array.from(costs.subarray(rule * budgets.length, (rule + 1) * budgets.length)),
      }));
    }),
    ...(rulesPerLayer !== undefined && rulesPerLayer < heads && { different: rulesPerLayer }),
  }));
  const found = solver.solve({ groups, budgets });
  return found && { ...found, choice: Int32Array.from(found.groups.flat()) };
}
