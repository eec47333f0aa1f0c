import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { openProducts } from "@coppice/backend-cpu";
import {
  addWork,
  CoppiceError,
  noWork,
  type Plan,
  parsePlan,
  type Scored,
  type WorkCounters,
} from "@coppice/core";
import { type Fold, type LayerReconstruction, reconstruct } from "@coppice/reconstruct";
import { type Evaluation, PlanEvaluator } from "@coppice/search";
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

/** What is kept of a fit, so that a run that is given again does not repeat it. */
type Fitted = Pick<Reconstructed, "before" | "layers" | "texts" | "tokens"> & {
  /** Key of the plan that was fitted. */
  readonly from: string;
  readonly plan: Plan;
};

const fileName = "reconstruction.json";

/** Fits the down projections of a plan that a search found, and scores the result on the search samples. */
export async function reconstructPlan(run: SearchRun, chosen: Scored): Promise<Reconstructed> {
  const { job, folder, signal } = run;
  const { model } = job.opened.checkpoint;
  await using executor = await openScorer(run, "search");
  const evaluator = new PlanEvaluator({ model, executor, journal: folder.journal });
  const evaluate: Evaluate = (plans) =>
    evaluator.evaluate(
      plans.map((plan) => ({ plan, phase: "reconstruct", origin: "fit" })),
      { signal },
    );
  const known = await readFitted(run, chosen.key);
  const { fitted, work } = known ? { fitted: known, work: noWork } : await fit(run, chosen, evaluate);
  if (!known) await folder.write(fileName, JSON.stringify(fitted));
  const [evaluated] = await evaluate([fitted.plan]);
  if (!evaluated) throw new CoppiceError("COPPICE_INTERNAL", "evaluating one plan gave no result");
  if (evaluated.error) throw evaluated.error;
  const { key, plan, scores, fitness, accuracy } = evaluated;
  const { before, layers, texts, tokens } = fitted;
  return {
    scored: {
      candidate: { plan, phase: "reconstruct", origin: chosen.candidate.origin },
      key,
      scores,
      fitness,
      ...(accuracy !== undefined && { accuracy }),
      cached: known !== undefined,
    },
    before,
    layers,
    texts,
    tokens,
    work: addWork(work, executor.work()),
  };
}

type Evaluate = (plans: readonly Plan[]) => Promise<readonly Evaluation[]>;

async function fit(
  run: SearchRun,
  chosen: Scored,
  evaluate: Evaluate,
): Promise<{ fitted: Fitted; work: WorkCounters }> {
  const { job, emitter, signal } = run;
  const { model, weights } = job.opened.checkpoint;
  const found = await fitTexts(run);
  const backend = await run.here();
  await using runner = await backend.load({ model, weights, signal });
  // Only that backend is known to find the native library.
  await using products = job.backend.name === "cpu" ? await openProducts() : undefined;
  const result = await reconstruct({
    runner,
    plan: chosen.candidate.plan,
    ...foldsOf(found, evaluate),
    ...(products && { products }),
    emitter,
    signal,
  });
  const { plan, before, layers, tokenLayers } = result;
  return {
    fitted: {
      from: chosen.key,
      plan,
      before,
      layers,
      texts: found.by,
      tokens: tokensOf(limitTexts(found.texts)),
    },
    work: addWork(found.work, { ...noWork, tokenLayers }),
  };
}

/** What an earlier process fitted to the same plan. */
async function readFitted({ job, folder }: SearchRun, from: string): Promise<Fitted | undefined> {
  let text: string;
  try {
    text = await readFile(join(folder.path, fileName), "utf8");
  } catch {
    return undefined;
  }
  // Written whole or not at all, by this program.
  const fitted = JSON.parse(text) as Fitted;
  if (fitted.from !== from) return undefined;
  return { ...fitted, plan: parsePlan(fitted.plan, job.opened.checkpoint.model) };
}

/**
 * Texts that the model wrote are judged by all search samples. Where the samples themselves are fitted to, each half judges
 * what was fitted to the other.
 */
function foldsOf(
  { by, texts }: FitTexts,
  evaluate: Evaluate,
): { folds: readonly Fold[]; texts?: readonly FitTexts["texts"][number][] } {
  if (by === "written" || texts.length < 2) {
    return {
      folds: [
        {
          texts: limitTexts(texts),
          score: async (plans) => (await evaluate(plans)).map(({ fitness }) => fitness),
        },
      ],
    };
  }
  const half = (parity: number): Fold => ({
    texts: limitTexts(texts.filter((_, i) => i % 2 === parity)),
    score: async (plans) => (await evaluate(plans)).map(({ scores }) => meanOfHalf(scores, 1 - parity)),
  });
  return { folds: [half(0), half(1)], texts: limitTexts(texts) };
}

/** Mean over the samples of one parity; -Infinity for a plan that failed. */
function meanOfHalf(scores: Float64Array, parity: number): number {
  const own = scores.filter((_, i) => i % 2 === parity);
  return own.length > 0 ? own.reduce((sum, value) => sum + value, 0) / own.length : Number.NEGATIVE_INFINITY;
}
