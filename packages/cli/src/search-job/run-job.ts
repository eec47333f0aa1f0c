import {
  addWork,
  CoppiceError,
  createPlan,
  moeLayers,
  noWork,
  type Plan,
  type Scored,
  type SearchStrategy,
  selectExperts,
  throwIfAborted,
  type WorkCounters,
  withTopK,
} from "@coppice/core";
import {
  PlanEvaluator,
  rankFinalists,
  resampleFinalists,
  runSearch,
  type SearchResult,
} from "@coppice/search";
import { projectToStock } from "@coppice/search-eep";
import { createStrategy } from "./create-strategy.js";
import { Measurer } from "./measure.js";
import { randomPlans } from "./random-plan.js";
import { type Reconstructed, reconstructPlan } from "./reconstruct-plan.js";
import { askBatch, finalistCount, randomDraws, type SearchJob, type SearchRun } from "./search-job.js";
import { seedScores } from "./seed-scores.js";
import { openScorer } from "./task-scorer.js";
import { checkMinimum, measureTable, type TaskTable } from "./task-table.js";

/** How the plan was chosen among the best, and what it got on the samples that this went by. */
export interface Choice {
  /** Samples of the task that the search did not see, or those of the search drawn anew. */
  readonly by: "further samples" | "resampling";
  readonly fitness: number;
  readonly accuracy?: number;
  readonly samples: number;
  /** Share of the draws in which no other plan was better. */
  readonly firstShare?: number;
}

/** What a search job found, before it is written down. */
export interface JobResult {
  readonly search: SearchResult;
  /** Plans that no earlier process had evaluated, and what proposing and evaluating them took. */
  readonly searching: { readonly plans: number; readonly seconds: number };
  readonly chosen: Scored;
  readonly choice: Choice;
  readonly plan: Plan;
  /** One per task. */
  readonly tables: readonly TaskTable[];
  /** Present when down projections were fitted: `chosen` and `plan` are then those after it. */
  readonly reconstructed?: Reconstructed;
  /** When the plan has router maps: the nearest stock plan. */
  readonly stock?: Plan;
  readonly work: WorkCounters;
}

/**
 * The whole of a search: seeds from criteria, the strategy's search, the choice among its best plans, and the tables of
 * scores on samples that decided nothing: nothing is run on them before the one plan is chosen.
 */
export async function runJob(run: SearchRun): Promise<JobResult> {
  const { job, folder, emitter, signal } = run;
  const { model } = job.opened.checkpoint;
  const scores = await seedScores(run);
  const strategy = await createStrategy(job, scores);
  const oneShot = job.criteria.map(({ plugin }) => ({
    label: plugin.pluginName,
    plan: oneShotPlan(job, scores.get(plugin.pluginName) as Float64Array[]),
  }));
  const { search, spent, seeds, work } = await searching(run, strategy, oneShot);
  throwIfAborted(signal, "choosing among the best plans");
  const { chosen, choice } = await choose(run, withinMemory(run, [...search.finalists, ...seeds]));
  const found = chosen.candidate.plan;
  const stock = found.layers.some((layer) => layer.routerMap) ? projectToStock(found) : undefined;
  if (stock && job.reconstruct) emitter.notify("warn", { code: "reconstruct", message: notMapped });
  const reconstructed = job.reconstruct && !stock ? await reconstructPlan(run, chosen) : undefined;
  const best = reconstructed?.scored ?? chosen;
  const { plan } = best.candidate;
  await folder.writeJson("plan.json", plan);
  emitter.notify("artifact", { kind: "plan", path: `${folder.path}/plan.json` });

  if (stock) await folder.writeJson("plan.stock.json", stock);
  const rows =
    1 + randomDraws + oneShot.length + 1 + Number(stock !== undefined || reconstructed !== undefined);
  const measurer = new Measurer(run, 2 * rows * job.tasks.length);
  const plans = {
    random: randomPlans(model, { keep: job.keep, topK: job.topK, count: randomDraws, seed: job.seed }),
    criteria: oneShot,
    strategy: job.strategy.plugin.pluginName,
    chosen: plan,
    ...(reconstructed && { found }),
    stock,
  };
  const tables: TaskTable[] = [];
  for (const task of job.tasks) {
    const rows = await measureTable(measurer, task, plans);
    const minimum = await checkMinimum(run, task, plan);
    tables.push({ task, rows, ...(minimum && { minimum }) });
  }
  return {
    search,
    searching: spent,
    chosen: best,
    choice,
    plan,
    tables,
    ...(reconstructed && { reconstructed }),
    ...(stock && { stock }),
    work: addWork(work, reconstructed?.work ?? noWork),
  };
}

const notMapped =
  "the plan has router maps, under which no stock checkpoint could hold fitted projections: they stay as they are";

/**
 * Searches, then scores the plans of the criteria on the same samples where the search did not: they take part in the
 * choice, so that a search with a small budget gives nothing worse than what was to be had without it.
 */
async function searching(
  run: SearchRun,
  strategy: SearchStrategy,
  oneShot: readonly { readonly label: string; readonly plan: Plan }[],
) {
  const { job, folder, emitter, signal } = run;
  const { model } = job.opened.checkpoint;
  await using executor = await openScorer(run, "search");
  const started = performance.now();
  const search = await runSearch({
    strategy,
    model,
    executor,
    evaluations: job.evaluations,
    ...(job.seconds !== undefined && { seconds: job.seconds }),
    ...(job.patience !== undefined && { patience: job.patience }),
    batch: job.batch ?? askBatch,
    finalists: finalistCount,
    journal: folder.journal,
    emitter,
    signal,
    onBest: async (best) => {
      await folder.writeJson("plan.json", best.candidate.plan);
    },
  });
  const spent = {
    plans: search.evaluations - search.replayed,
    seconds: (performance.now() - started) / 1000,
  };
  const evaluator = new PlanEvaluator({ model, executor, journal: folder.journal });
  const candidates = oneShot.map(({ label, plan }) => ({
    plan,
    phase: "prune",
    origin: `criterion:${label}`,
  }));
  const evaluated = await evaluator.evaluate(candidates, { signal });
  const known = new Set(search.finalists.map(({ key }) => key));
  const seeds = candidates.flatMap((candidate, i): Scored[] => {
    const { key, plan, scores, fitness, accuracy, error } = evaluated[i] as (typeof evaluated)[number];
    if (error || known.has(key)) return [];
    known.add(key);
    return [
      {
        candidate: { ...candidate, plan },
        key,
        scores,
        fitness,
        ...(accuracy !== undefined && { accuracy }),
        cached: false,
      },
    ];
  });
  return { search, spent, seeds, work: executor.work() };
}

/** Strategies for several sizes know `keep` as the fewest experts, so that their plans may be too large. */
function withinMemory({ job, emitter }: SearchRun, finalists: readonly Scored[]): readonly Scored[] {
  if (!job.memory) return finalists;
  const { keep, opened } = job;
  const layers = moeLayers(opened.checkpoint.model);
  const fitting = finalists.filter(({ candidate: { plan } }) =>
    layers.every(({ index, feedForward }) => {
      const { experts = feedForward.experts } = plan.layers.find(({ layer }) => layer === index) ?? {};
      return experts.length <= keep;
    }),
  );
  const left = finalists.length - fitting.length;
  const message = `${left} of the best plans keep more than ${keep} experts in some layer and are left out`;
  const hint = `tell the strategy how many there may be, such as --set most=${keep}`;
  if (fitting.length === 0) throw new CoppiceError("COPPICE_PLAN_KEEP", message, { hint });
  if (left > 0) emitter.notify("warn", { code: "memory", message: `${message}; ${hint}` });
  return fitting;
}

/** The finalist that is best on search and choice samples together or, without choice samples, by resampling. */
async function choose(
  run: SearchRun,
  finalists: readonly Scored[],
): Promise<{ chosen: Scored; choice: Choice }> {
  const { job, folder, signal } = run;
  if (job.tasks.some(({ sets }) => !sets.choice)) {
    const [first] = resampleFinalists(finalists);
    const { finalist: chosen, firstShare } = first as NonNullable<typeof first>;
    const { fitness, accuracy, scores } = chosen;
    const measured = { fitness, samples: scores.length, ...(accuracy !== undefined && { accuracy }) };
    return { chosen, choice: { by: "resampling", ...measured, firstShare } };
  }
  await using executor = await openScorer(run, "choice");
  const evaluator = new PlanEvaluator({
    model: job.opened.checkpoint.model,
    executor,
    journal: folder.journal,
    scope: "choice",
  });
  const results = await evaluator.evaluate(
    finalists.map(({ candidate }) => candidate),
    { signal },
  );
  const [best] = rankFinalists(finalists, results);
  const { finalist: chosen } = best as NonNullable<typeof best>;
  const { fitness, accuracy, scores } = results[finalists.indexOf(chosen)] as (typeof results)[number];
  const measured = { fitness, samples: scores.length, ...(accuracy !== undefined && { accuracy }) };
  return { chosen, choice: { by: "further samples", ...measured } };
}

/** The plan of a criterion alone. */
function oneShotPlan({ opened, keep, topK }: SearchJob, scores: readonly Float64Array[]): Plan {
  const { model } = opened.checkpoint;
  return createPlan(
    model,
    moeLayers(model).map((layer, i) => ({
      layer: layer.index,
      experts: selectExperts(withTopK(layer, topK).feedForward, scores[i] as Float64Array, keep, layer.index),
      ...(topK !== undefined && { topK }),
    })),
  );
}
