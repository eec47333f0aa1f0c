import { openProducts } from "@coppice/backend-cpu";
import { addWork, CoppiceError, noWork, type Plan, type Scored, type WorkCounters } from "@coppice/core";
import { type Fold, type LayerReconstruction, reconstruct } from "@coppice/reconstruct";
import { PlanEvaluator } from "@coppice/search";
import { type FitTexts, fitTexts, limitTexts, tokensOf } from "./fit-texts.js";
import type { SearchRun } from "./search-job.js";
import { openScorer } from "./task-scorer.js";

/** What fitting the down projections of the chosen plan came to. */
export interface Reconstructed {
  readonly scored: Scored;
  readonly layers: readonly LayerReconstruction[];
  /** Fitness on the samples that judge, before anything was fitted. */
  readonly before: number;
  /** What was fitted to, and how many tokens of it. */
  readonly texts: FitTexts["by"];
  readonly tokens: number;
  readonly work: WorkCounters;
}

/** Fits the down projections of a plan that a search found, and scores the result on the search samples. */
export async function reconstructPlan(run: SearchRun, chosen: Scored): Promise<Reconstructed> {
  const { job, folder, emitter, signal } = run;
  const { model, weights } = job.opened.checkpoint;
  const backend = await run.here();
  await using runner = await backend.load({ model, weights, signal });
  // Only that backend is known to find the native library.
  await using products = job.backend.name === "cpu" ? await openProducts() : undefined;
  await using executor = await openScorer(run, "search");
  const evaluator = new PlanEvaluator({ model, executor, journal: folder.journal });
  const evaluate = async (plans: readonly Plan[]) =>
    evaluator.evaluate(
      plans.map((plan) => ({ plan, phase: "reconstruct", origin: "fit" })),
      { signal },
    );
  const found = await fitTexts(run, runner);
  const result = await reconstruct({
    runner,
    plan: chosen.candidate.plan,
    ...foldsOf(found, async (plans) =>
      (await evaluate(plans)).map(({ scores, fitness }) => ({ scores, fitness })),
    ),
    ...(products && { products }),
    emitter,
    signal,
  });
  const [evaluated] = await evaluate([result.plan]);
  if (!evaluated) throw new CoppiceError("COPPICE_INTERNAL", "evaluating one plan gave no result");
  if (evaluated.error) throw evaluated.error;
  const { key, plan, scores, fitness, accuracy } = evaluated;
  const texts = { ...noWork, tokenLayers: result.tokenLayers };
  return {
    scored: {
      candidate: { plan, phase: "reconstruct", origin: chosen.candidate.origin ?? "" },
      key,
      scores,
      fitness,
      ...(accuracy !== undefined && { accuracy }),
      cached: false,
    },
    before: result.before,
    layers: result.layers,
    texts: found.by,
    tokens: tokensOf(limitTexts(found.texts)),
    work: [found.work, texts, executor.work()].reduce((sum, work) => addWork(sum, work)),
  };
}

interface Judged {
  readonly scores: Float64Array;
  readonly fitness: number;
}

/**
 * Texts that the model wrote are judged by all search samples. Where the samples themselves are fitted to, each half judges
 * what was fitted to the other.
 */
function foldsOf(
  { by, texts }: FitTexts,
  judge: (plans: readonly Plan[]) => Promise<readonly Judged[]>,
): { folds: readonly Fold[]; texts?: readonly FitTexts["texts"][number][] } {
  if (by === "written" || texts.length < 2) {
    return {
      folds: [
        {
          texts: limitTexts(texts),
          score: async (plans) => (await judge(plans)).map(({ fitness }) => fitness),
        },
      ],
    };
  }
  const half = (parity: number): Fold => ({
    texts: limitTexts(texts.filter((_, i) => i % 2 === parity)),
    score: async (plans) => (await judge(plans)).map(({ scores }) => meanOfHalf(scores, 1 - parity)),
  });
  return { folds: [half(0), half(1)], texts: limitTexts(texts) };
}

/** Mean over the samples of one parity; -Infinity for a plan that failed. */
function meanOfHalf(scores: Float64Array, parity: number): number {
  const own = scores.filter((_, i) => i % 2 === parity);
  return own.length > 0 ? own.reduce((sum, value) => sum + value, 0) / own.length : Number.NEGATIVE_INFINITY;
}
