import { CoppiceError, type Scored } from "@coppice/core";
import type { Evaluation } from "./evaluator.js";

/** A finalist with its result on the samples set aside for the choice. */
export interface RankedFinalist {
  readonly finalist: Scored;
  /** Mean on the choice samples alone. */
  readonly choiceFitness: number;
  /** Mean over search and choice samples together; what the ranking goes by. */
  readonly pooledFitness: number;
}

/**
 * Ranks finalists by their mean score over search and choice samples together, best first; equals keep the order
 * of `finalists`.
 *
 * The search score of a winner is too high because it was selected for; the choice score is not, but is noisier.
 * Given both, every sample says equally much about the plan, so the pooled mean is the best estimate for choosing.
 * It is no estimate of the score itself: report that on samples which took part in no choice.
 *
 * @param choice evaluation of each finalist on the choice samples, in the order of `finalists`
 * @throws COPPICE_USAGE when the two lists do not match or are empty; the error of the last finalist when all failed
 */
export function rankFinalists(finalists: readonly Scored[], choice: readonly Evaluation[]): RankedFinalist[] {
  if (finalists.length === 0 || finalists.length !== choice.length) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `${finalists.length} finalists and ${choice.length} choice results; expected one result for each of at least one`,
    );
  }
  const ranked: RankedFinalist[] = [];
  finalists.forEach((finalist, i) => {
    const { key, scores, fitness, error } = choice[i] as Evaluation;
    if (key !== finalist.key) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `choice result ${i} is of plan ${key}, expected ${finalist.key}`,
      );
    }
    if (error) return;
    const samples = finalist.scores.length + scores.length;
    const total = finalist.fitness * finalist.scores.length + fitness * scores.length;
    ranked.push({ finalist, choiceFitness: fitness, pooledFitness: total / samples });
  });
  if (ranked.length === 0) throw choice.at(-1)?.error;
  return ranked.sort((a, b) => b.pooledFitness - a.pooledFitness);
}

/** The finalist that `rankFinalists` puts first. */
export function chooseFinalist(finalists: readonly Scored[], choice: readonly Evaluation[]): Scored {
  return (rankFinalists(finalists, choice)[0] as RankedFinalist).finalist;
}
