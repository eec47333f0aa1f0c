import { addWork, noWork, type Plan, type WorkCounters } from "@coppice/core";
import type { Fold } from "@coppice/reconstruct";
import { type FitTexts, limitTexts } from "./fit-texts.js";
import { type Half, halves, type Judge, ofHalf, openJudge, otherHalf } from "./judge.js";
import type { SearchRun } from "./search-job.js";

export interface FitFolds extends AsyncDisposable {
  readonly folds: readonly Fold[];
  /** What judging has taken. */
  work(): WorkCounters;
}

/**
 * Texts that the model wrote are judged by all search samples. Where the samples themselves are fitted to, each half judges
 * what was fitted to the other.
 */
export async function openFolds(run: SearchRun, { by, texts }: FitTexts): Promise<FitFolds> {
  if (by === "written" || texts.length < 2) {
    const judge = await openJudge(run);
    return opened([judge], [{ texts: limitTexts(texts), score: (plans) => fitnessOf(judge, plans) }]);
  }
  const fold = (half: Half, score: Fold["score"]): Fold => ({
    texts: limitTexts(ofHalf(texts, half)),
    score,
  });
  if (run.job.tasks.some(({ sets }) => sets.search.form === "text")) {
    // One text may be all windows there are, so that they are not halves of the task.
    const judge = await openJudge(run);
    const score = (half: Half) => async (plans: readonly Plan[]) =>
      (await judge.evaluate(plans)).map(({ scores }) => mean(ofHalf([...scores], half)));
    return opened(
      [judge],
      halves.map((half) => fold(half, score(otherHalf(half)))),
    );
  }
  const judges: Judge[] = [];
  try {
    for (const half of halves) judges.push(await openJudge(run, otherHalf(half)));
  } catch (error) {
    await Promise.all(judges.map((judge) => judge[Symbol.asyncDispose]()));
    throw error;
  }
  return opened(
    judges,
    halves.map((half, i) => fold(half, (plans) => fitnessOf(judges[i] as Judge, plans))),
  );
}

function opened(judges: readonly Judge[], folds: readonly Fold[]): FitFolds {
  return {
    folds,
    work: () => judges.reduce((sum, judge) => addWork(sum, judge.work()), noWork),
    [Symbol.asyncDispose]: async () => {
      await Promise.all(judges.map((judge) => judge[Symbol.asyncDispose]()));
    },
  };
}

async function fitnessOf(judge: Judge, plans: readonly Plan[]): Promise<number[]> {
  return (await judge.evaluate(plans)).map(({ fitness }) => fitness);
}

/** -Infinity for a plan that failed, which has no scores. */
function mean(values: readonly number[]): number {
  if (values.length === 0) return Number.NEGATIVE_INFINITY;
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
