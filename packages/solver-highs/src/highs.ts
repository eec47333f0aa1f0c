import {
  type ChoiceProgram,
  type ChoiceSolution,
  type ChoiceSolver,
  CoppiceError,
  definePlugin,
} from "@coppice/core";
import loadHighs, { type Highs, type Model } from "highs";
import * as v from "valibot";
import { checkProgram } from "./check-program.js";
import { type ChoiceModel, choiceModel } from "./choice-model.js";

/** Options of the plugin `highs`. */
export interface HighsOptions {
  /** After so many the best answer so far is taken; default 60. */
  readonly seconds?: number;
  /** Most options of all units together, with those of rules for groups; default 100,000. */
  readonly variables?: number;
}

declare module "@coppice/core" {
  interface SolverPlugins {
    highs: HighsOptions;
  }
}

// The package describes its ES module as it does its CommonJS one, whose exports have a `default`.
const load = loadHighs as unknown as typeof loadHighs.default;

/**
 * Programs of choices as mixed-integer programs, solved by HiGHS in WebAssembly: branch and cut, on one thread. Exact where the
 * time is enough, whatever the rules are.
 */
export const highs = definePlugin({
  kind: "solver",
  name: "highs",
  contract: 1,
  summary: "Proves the best choice by branch and cut (HiGHS).",
  reference: "https://highs.dev",
  options: v.strictObject({
    seconds: v.exactOptional(v.pipe(v.number(), v.gtValue(0), v.maxValue(86_400)), 60),
    variables: v.exactOptional(
      v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(10_000_000)),
      100_000,
    ),
  }),
  create: async (options): Promise<ChoiceSolver> => {
    const runtime = await load();
    return { solve: (program) => solve(runtime, program, options) };
  },
});

/**
 * Options are whole only to a tolerance while the solver works. At this one, what all costs together may be over a budget
 * stays below one part in a million of the largest cost, and is checked to be nothing in the end.
 */
const tolerance = 1e-9;

function solve(
  runtime: Highs,
  program: ChoiceProgram,
  { seconds, variables }: Required<HighsOptions>,
): ChoiceSolution | undefined {
  const size = checkProgram(program);
  if (size > variables) {
    throw new CoppiceError(
      "COPPICE_SOLVER_LIMIT",
      `the program has ${size} variables, highs takes at most ${variables}`,
      {
        hint: "raise its option `variables`, or use the solver that the method has itself",
        details: { size, variables },
      },
    );
  }
  const built = choiceModel(program);
  return runtime.withModel(built.data, (model) => {
    model.options.set({
      output_flag: false,
      time_limit: seconds,
      mip_rel_gap: 0,
      mip_abs_gap: 0,
      mip_feasibility_tolerance: tolerance,
      primal_feasibility_tolerance: tolerance,
    });
    const { modelStatus } = model.run();
    const { infeasible, unboundedOrInfeasible, optimal } = runtime.constants.modelStatus;
    // No loss is without bound, so there is no choice that fits.
    if (modelStatus === infeasible || modelStatus === unboundedOrInfeasible) return undefined;
    return answer(program, built, model, modelStatus === optimal, seconds);
  });
}

function answer(
  { groups, budgets }: ChoiceProgram,
  { columns, unit, least }: ChoiceModel,
  model: Model,
  optimal: boolean,
  seconds: number,
): ChoiceSolution {
  const { colValue } = model.getSolution();
  const taken = budgets.map(() => 0);
  let [loss, isWhole] = [0, true];
  const chosen = groups.map(({ units }, g) =>
    units.map((options, u) => {
      const start = columns[g]?.[u] as number;
      const place = options.findIndex((_, o) => (colValue[start + o] as number) > 0.5);
      const option = options[place];
      if (!option) {
        isWhole = false;
        return place;
      }
      loss += option.loss;
      option.costs.forEach((cost, k) => {
        taken[k] = (taken[k] as number) + cost;
      });
      return place;
    }),
  );
  const over = taken.findIndex((sum, k) => sum > (budgets[k] as number) * (1 + 1e-12));
  if (!isWhole || over >= 0) {
    throw new CoppiceError(
      "COPPICE_SOLVER_LIMIT",
      isWhole
        ? `highs chose what takes ${taken[over]} of a budget of ${budgets[over]}: its tolerance is too coarse for these costs`
        : `highs found no choice in ${seconds} s, and did not prove that there is none`,
      { hint: isWhole ? "give costs in larger units" : "raise its option `seconds`", details: { seconds } },
    );
  }
  const dual = Number(model.info.get("mip_dual_bound"));
  const bound = Number.isFinite(dual) ? least + dual * unit : Number.NEGATIVE_INFINITY;
  return { groups: chosen, loss, bound: optimal ? loss : Math.min(loss, bound), optimal };
}
