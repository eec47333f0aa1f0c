import { join } from "node:path";
import { openProducts } from "@coppice/backend-cpu";
import { addWork, CoppiceError, noWork, type Scored, type WorkCounters } from "@coppice/core";
import { defaultGrids, reconstruct } from "@coppice/reconstruct";
import { crossFittedScore } from "./cross-fitted.js";
import { openFolds } from "./fit-folds.js";
import { fitGrids } from "./fit-grids.js";
import { fitTexts, limitTexts, tokensOf } from "./fit-texts.js";
import { type FittedPlan, readFittedPlan } from "./fitted-plan.js";
import { openJudge } from "./judge.js";
import type { SearchRun } from "./search-job.js";

/** What fitting the down projections of the chosen plan came to. */
export interface Reconstructed extends Omit<FittedPlan, "from" | "plan"> {
  readonly scored: Scored;
  readonly work: WorkCounters;
}

const fileName = "reconstruction.json";

/** Fits the down projections of a plan that a search found, and scores the result on the search samples. */
export async function reconstructPlan(run: SearchRun, chosen: Scored): Promise<Reconstructed> {
  const { job, folder, signal } = run;
  const path = join(folder.path, fileName);
  const known = await readFittedPlan(path, chosen.key, job.opened.checkpoint.model, signal);
  const { fitted, work } = known ? { fitted: known, work: noWork } : await fit(run, chosen);
  if (!known) await folder.write(fileName, JSON.stringify(fitted));
  await using judge = await openJudge(run);
  const [evaluated] = await judge.evaluate([fitted.plan]);
  if (!evaluated) throw new CoppiceError("COPPICE_INTERNAL", "evaluating one plan gave no result");
  if (evaluated.error) throw evaluated.error;
  const { key, plan, scores, fitness, accuracy } = evaluated;
  const { from: _, plan: __, ...rest } = fitted;
  return {
    scored: {
      candidate: { plan, phase: "reconstruct", origin: chosen.candidate.origin },
      key,
      scores,
      fitness,
      ...(accuracy !== undefined && { accuracy }),
      cached: known !== undefined,
    },
    ...rest,
    work: addWork(work, judge.work()),
  };
}

async function fit(run: SearchRun, chosen: Scored): Promise<{ fitted: FittedPlan; work: WorkCounters }> {
  const { job, emitter, signal } = run;
  const { model, weights } = job.opened.checkpoint;
  const found = await fitTexts(run);
  await using folds = await openFolds(run, found);
  const backend = await run.here();
  await using runner = await backend.load({ model, weights, signal });
  await using products = await nativeProducts();
  const texts = limitTexts(found.texts);
  const { plan, foldPlans, before, layers, tokenLayers } = await reconstruct({
    runner,
    plan: chosen.candidate.plan,
    folds: folds.folds,
    // The result of one fold is fitted to its texts already.
    ...(folds.folds.length > 1 && { texts }),
    // Without halves the judge knows how the texts begin, or more of them, which flatters the close fits of later grids.
    grids: defaultGrids.slice(
      0,
      folds.folds.length === 1 ? 1 : Math.max(1, fitGrids(model, job.keep).length),
    ),
    ...(products && { products }),
    emitter,
    signal,
  });
  const crossFitted = found.by === "samples" ? await crossFittedScore(run, foldPlans) : undefined;
  return {
    fitted: {
      from: chosen.key,
      plan,
      before,
      layers,
      texts: found.by,
      tokens: tokensOf(texts),
      ...(crossFitted && { crossFitted }),
    },
    work: addWork(addWork(found.work, folds.work()), { ...noWork, tokenLayers }),
  };
}

/** Whatever the backend is; without the native library plain loops take their place. */
async function nativeProducts(): Promise<Awaited<ReturnType<typeof openProducts>> | undefined> {
  try {
    return await openProducts();
  } catch (error) {
    if (error instanceof CoppiceError && error.code === "COPPICE_BACKEND_UNAVAILABLE") return undefined;
    throw error;
  }
}
