import {
  createPlan,
  moeLayers,
  type Plan,
  Rng,
  type Scored,
  type SearchStrategy,
  selectExperts,
  throwIfAborted,
  withTopK,
} from "@coppice/core";
import { PlanEvaluator, rankFinalists, runSearch, type SearchResult } from "@coppice/search";
import { projectToStock } from "@coppice/search-eep";
import { differenceTo, Measurer, meanMeasurement } from "./measure.js";
import { randomPlans } from "./random-plan.js";
import {
  askBatch,
  finalistCount,
  type Measurement,
  type ResultRow,
  randomDraws,
  type SearchJob,
  type SearchRun,
} from "./search-job.js";
import { seedScores } from "./seed-scores.js";

/** What a search job found, before it is written down. */
export interface JobResult {
  readonly search: SearchResult;
  readonly chosen: Scored;
  /** The chosen plan on the choice samples. */
  readonly choice: { readonly fitness: number; readonly accuracy?: number; readonly samples: number };
  readonly plan: Plan;
  readonly rows: readonly ResultRow[];
  /** When the plan has router maps: the nearest stock plan, and its scores. */
  readonly projected?: { readonly plan: Plan; readonly row: ResultRow };
  readonly tokenLayers: number;
  readonly avoidedTokenLayers: number;
}

/**
 * The whole of a search: seeds from criteria, the strategy's search, the choice among its best plans on samples
 * of their own, and the table of scores on samples that decided nothing.
 */
export async function runJob(run: SearchRun): Promise<JobResult> {
  const { job, folder, emitter, signal } = run;
  const { model } = job.opened.checkpoint;
  const scores = await seedScores(run);
  const strategy = await job.strategy.plugin.create(job.options, {
    model,
    rng: Rng.fromSeed(job.seed),
    evaluations: job.evaluations,
    scores,
  });
  const oneShot = job.criteria.map(({ plugin }) => ({
    label: plugin.pluginName,
    plan: oneShotPlan(job, scores.get(plugin.pluginName) as Float64Array[]),
  }));
  const { search, seeds, work } = await searching(run, strategy, oneShot);
  throwIfAborted(signal, "choosing among the best plans");
  const { chosen, choice } = await choose(run, [...search.finalists, ...seeds]);
  const { plan } = chosen.candidate;
  await folder.writeJson("plan.json", plan);
  emitter.notify("artifact", { kind: "plan", path: `${folder.path}/plan.json` });

  const mapped = plan.layers.some((layer) => layer.routerMap);
  const measurer = new Measurer(run, 2 * (1 + randomDraws + oneShot.length + 1 + Number(mapped)));
  const both = async (measured?: Plan) => ({
    search: await measurer.measure("search", measured),
    holdout: await measurer.measure("report", measured),
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
  const draws = randomPlans(model, { keep: job.keep, topK: job.topK, count: randomDraws, seed: job.seed });
  const drawn = [];
  for (const draw of draws) drawn.push(await both(draw));
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
  for (const { label, plan } of oneShot) rows.push(row(label, "baseline", await both(plan)));
  rows.push(row(job.strategy.plugin.pluginName, "chosen", await both(plan)));
  const stock = mapped ? projectToStock(plan) : undefined;
  const projected = stock && {
    plan: stock,
    row: row(`${job.strategy.plugin.pluginName}, stock router`, "baseline", await both(stock)),
  };
  if (projected) await folder.writeJson("plan.stock.json", projected.plan);
  return {
    search,
    chosen,
    choice,
    plan,
    rows: projected ? [...rows, projected.row] : rows,
    ...(projected && { projected }),
    ...work,
  };
}

/**
 * Searches, then scores the plans of the criteria on the same samples where the search did not: they take part in the
 * choice, so that a search with a small budget gives nothing worse than what was to be had without it.
 */
async function searching(
  run: SearchRun,
  strategy: SearchStrategy,
  oneShot: readonly { readonly label: string; readonly plan: Plan }[],
) {
  const { job, pool, folder, emitter, signal } = run;
  const { objective, chat, sets, opened } = job;
  const { model } = opened.checkpoint;
  await using executor = await pool.scorer({ task: sets.search, objective, chat, signal });
  const search = await runSearch({
    strategy,
    model,
    executor,
    evaluations: job.evaluations,
    batch: job.batch ?? askBatch,
    finalists: finalistCount,
    journal: folder.journal,
    emitter,
    signal,
    onBest: async (best) => {
      await folder.writeJson("plan.json", best.candidate.plan);
    },
  });
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
  return { search, seeds, work: executor.work() };
}

/** The finalist that is best on search and choice samples together. */
async function choose(run: SearchRun, finalists: readonly Scored[]) {
  const { job, pool, folder, signal } = run;
  const { objective, chat, sets, opened } = job;
  await using executor = await pool.scorer({ task: sets.choice, objective, chat, signal });
  const evaluator = new PlanEvaluator({
    model: opened.checkpoint.model,
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
  return { chosen, choice: { fitness, samples: scores.length, ...(accuracy !== undefined && { accuracy }) } };
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
