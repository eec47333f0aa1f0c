import {
  type Criterion,
  checkCollected,
  type ExtraField,
  type LayerStatistics,
  matchingStatistics,
  type ScoreRequest,
  type Statistics,
  throwIfAborted,
} from "@coppice/core";

/** Statistics of a layer that have these of what is collected on demand. */
export type LayerWith<F extends ExtraField> = LayerStatistics & Required<Pick<LayerStatistics, F>>;

/** A criterion that scores each layer from its statistics alone. */
export function statisticsCriterion(scoreLayer: (statistics: LayerStatistics) => Float64Array): Criterion {
  return {
    needs: { statistics: true, weights: false },
    async score(request) {
      throwIfAborted(request.signal, "scoring experts");
      return matchingStatistics(request).map(scoreLayer);
    },
  };
}

/**
 * A criterion that scores all layers together, from statistics with more than the sums that all have.
 * @param name of the criterion, for messages about `extras`
 * @param extras what it needs of what is collected on demand
 */
export function extrasCriterion<F extends ExtraField>(
  name: string,
  extras: readonly F[],
  score: (layers: readonly LayerWith<F>[]) => Float64Array[],
): Criterion {
  const needs = { statistics: true, weights: false, extras };
  return {
    needs,
    async score(request) {
      throwIfAborted(request.signal, "scoring experts");
      return score(collectedLayers(request, needs, name) as readonly LayerWith<F>[]);
    },
  };
}

/**
 * The statistics of every MoE layer, which have what `needs` lists of what is collected on demand.
 * @throws COPPICE_STATS_MISSING, COPPICE_STATS_MODEL
 */
export function collectedLayers(
  request: Pick<ScoreRequest, "model" | "statistics">,
  needs: Criterion["needs"],
  name: string,
): readonly LayerStatistics[] {
  const layers = matchingStatistics(request);
  checkCollected(request.statistics as Statistics, needs, name);
  return layers;
}
