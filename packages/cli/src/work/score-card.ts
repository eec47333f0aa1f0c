import { type DroppedProbability, droppedProbability, rankCorrelation } from "@coppice/calibrate";
import { type MoeModel, moeLayers, type Statistics } from "@coppice/core";

/** What one criterion says. */
export interface CriterionScores {
  readonly criterion: string;
  /** One row per MoE layer, one score per expert. */
  readonly scores: readonly Float64Array[];
}

/** Criteria side by side. */
export interface ScoreCard {
  /** Index of every MoE layer. */
  readonly layers: readonly number[];
  /** With statistics, also the probability mass that each drops. */
  readonly criteria: readonly (CriterionScores & { readonly dropped?: DroppedProbability })[];
  /** The least that can be dropped: experts kept by their probability. Needs statistics. */
  readonly leastDropped?: DroppedProbability;
  /** Of every two criteria, where there are several. */
  readonly correlations: readonly CriteriaCorrelation[];
}

export interface CriteriaCorrelation {
  readonly criteria: readonly [string, string];
  /** Spearman's rank correlation per MoE layer; null where a criterion scores all experts alike. */
  readonly layers: readonly (number | null)[];
  /** Mean over the layers that have one. */
  readonly mean: number | null;
}

export function scoreCard(
  model: MoeModel,
  criteria: readonly CriterionScores[],
  statistics: Statistics | undefined,
): ScoreCard {
  const dropped = (scores: readonly ArrayLike<number>[]) =>
    statistics && droppedProbability(model, statistics, scores);
  const least = dropped(statistics?.layers.map(({ probability }) => probability) ?? []);
  return {
    layers: moeLayers(model).map(({ index }) => index),
    criteria: criteria.map(({ criterion, scores }) => {
      const drop = dropped(scores);
      return { criterion, scores, ...(drop && { dropped: drop }) };
    }),
    ...(least && { leastDropped: least }),
    correlations: criteria.flatMap((one, i) => criteria.slice(i + 1).map((other) => correlate(one, other))),
  };
}

function correlate(one: CriterionScores, other: CriterionScores): CriteriaCorrelation {
  const layers = one.scores.map(
    (row, layer) => rankCorrelation(row, other.scores[layer] as Float64Array) ?? null,
  );
  const known = layers.filter((value) => value !== null);
  const mean = known.length === 0 ? null : known.reduce((sum, value) => sum + value, 0) / known.length;
  return { criteria: [one.criterion, other.criterion], layers, mean };
}
