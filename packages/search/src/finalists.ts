import { CoppiceError, Rng, type Scored } from "@coppice/core";
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

/** A finalist with how it does on samples that are drawn anew from those of the search. */
export interface ResampledFinalist {
  readonly finalist: Scored;
  /** Mean over the draws of its rank among the finalists, 1 for the best; equals share their ranks. */
  readonly meanRank: number;
  /** Share of the draws in which no other one is better. */
  readonly firstShare: number;
}

/** Enough for ranks to two digits; the draws are always the same, so that a run can be repeated. */
const resamples = 1000;
const resamplingSeed = 0x5eed;

/**
 * Ranks finalists without further samples, best first, by their mean rank over bootstrap draws of the search samples (B. Efron,
 * Annals of Statistics 7, 1979); equals keep the order of `finalists`. A plan whose lead hangs on a few samples loses it in
 * many draws. It cannot take back what selection added to all of them.
 * @throws COPPICE_USAGE when there is no finalist, or not the same number of scores of each
 */
export function resampleFinalists(finalists: readonly Scored[]): ResampledFinalist[] {
  const sizes = new Set(finalists.map(({ scores }) => scores.length));
  const [samples = 0] = sizes;
  if (sizes.size !== 1 || samples === 0) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `${finalists.length} finalists have ${[...sizes].join(" and ") || "no"} scores; ` +
        "expected at least one finalist, and scores of the same samples of each",
    );
  }
  const rng = Rng.fromSeed(resamplingSeed);
  const ranks = new Float64Array(finalists.length);
  const firsts = new Uint32Array(finalists.length);
  const sums = new Float64Array(finalists.length);
  for (let draw = 0; draw < resamples; draw++) {
    sums.fill(0);
    for (let i = 0; i < samples; i++) {
      const sample = rng.integer(samples);
      for (const [f, { scores }] of finalists.entries())
        sums[f] = (sums[f] as number) + (scores[sample] as number);
    }
    for (const [f, sum] of sums.entries()) {
      const better = sums.filter((other) => other > sum).length;
      const equal = sums.filter((other) => other === sum).length;
      ranks[f] = (ranks[f] as number) + better + (equal + 1) / 2;
      if (better === 0) firsts[f] = (firsts[f] as number) + 1;
    }
  }
  return finalists
    .map((finalist, f) => ({
      finalist,
      meanRank: (ranks[f] as number) / resamples,
      firstShare: (firsts[f] as number) / resamples,
    }))
    .sort((a, b) => a.meanRank - b.meanRank);
}
