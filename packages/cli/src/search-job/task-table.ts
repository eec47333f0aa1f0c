import { CoppiceError, type Plan } from "@coppice/core";
import { bootstrapMean, type Interval } from "@coppice/evaluate";
import { PlanEvaluator } from "@coppice/search";
import { differenceTo, type Measurer, meanMeasurement } from "./measure.js";
import { type JobTask, type Measurement, type ResultRow, randomDraws, type SearchRun } from "./search-job.js";
import { taskScorer } from "./task-scorer.js";

/** The plans that a table compares with the full model. */
export interface ComparedPlans {
  readonly random: readonly Plan[];
  readonly criteria: readonly { readonly label: string; readonly plan: Plan }[];
  readonly strategy: string;
  readonly chosen: Plan;
  /** The chosen plan before its down projections were fitted, where they were. */
  readonly found?: Plan | undefined;
  /** The chosen plan without its router maps, where it has some. */
  readonly stock?: Plan | undefined;
}

/** How the chosen plan does against the minimum of a task, by the task's objective. */
export interface MinimumCheck {
  readonly minimum: number;
  readonly search: Interval & { readonly samples: number };
  readonly holdout: Interval & { readonly samples: number };
}

/** The results of one task. */
export interface TaskTable {
  readonly task: JobTask;
  readonly rows: readonly ResultRow[];
  /** Present where the task has a minimum. */
  readonly minimum?: MinimumCheck;
}

/** Measures all plans on the search and the report samples of a task. */
export async function measureTable(
  measurer: Measurer,
  task: JobTask,
  plans: ComparedPlans,
): Promise<ResultRow[]> {
  const both = async (measured?: Plan) => ({
    search: await measurer.measure(task, "search", measured),
    holdout: await measurer.measure(task, "report", measured),
  });
  const full = await both();
  const row = (
    label: string,
    role: ResultRow["role"],
    scores: Record<"search" | "holdout", Measurement>,
    note?: string,
  ): ResultRow => {
    const difference = role === "full" ? undefined : differenceTo(full.holdout, scores.holdout);
    return { label, role, ...scores, ...(note !== undefined && { note }), ...(difference && { difference }) };
  };
  const rows = [row("full model", "full", full)];
  const drawn = [];
  for (const draw of plans.random) drawn.push(await both(draw));
  rows.push(
    row(
      "random",
      "baseline",
      {
        search: meanMeasurement(drawn.map((d) => d.search)),
        holdout: meanMeasurement(drawn.map((d) => d.holdout)),
      },
      `mean of ${randomDraws} draws`,
    ),
  );
  for (const { label, plan } of plans.criteria) rows.push(row(label, "baseline", await both(plan)));
  if (plans.found) {
    rows.push(row(plans.strategy, "baseline", await both(plans.found), "before reconstruction"));
  }
  rows.push(row(plans.strategy, "chosen", await both(plans.chosen)));
  if (plans.stock) rows.push(row(`${plans.strategy}, stock router`, "baseline", await both(plans.stock)));
  const chosen = rows.find(({ role }) => role === "chosen") as ResultRow;
  return rows.map((own) => {
    const gain = own.role === "baseline" ? differenceTo(own.holdout, chosen.holdout) : undefined;
    return gain ? { ...own, gain } : own;
  });
}

/** Scores the chosen plan by the objective of a task with a minimum; undefined for others. */
export async function checkMinimum(
  run: SearchRun,
  task: JobTask,
  plan: Plan,
): Promise<MinimumCheck | undefined> {
  const { minimum, name } = task;
  if (minimum === undefined) return undefined;
  const scored = async (set: "search" | "report") => {
    await using executor = await taskScorer(run, task, set);
    const { model } = run.job.opened.checkpoint;
    const scope = `minimum ${name} ${set}`;
    const evaluator = new PlanEvaluator({ model, executor, journal: run.folder.journal, scope });
    const [result] = await evaluator.evaluate([{ plan }], { signal: run.signal });
    if (!result) throw new CoppiceError("COPPICE_INTERNAL", "evaluating one plan gave no result");
    if (result.error) throw result.error;
    return { ...bootstrapMean(result.scores), samples: result.scores.length };
  };
  return { minimum, search: await scored("search"), holdout: await scored("report") };
}
