import {
  CoppiceError,
  type Criterion,
  type LayerStatistics,
  moeLayers,
  type ScoreRequest,
  throwIfAborted,
} from "@coppice/core";

/** A criterion that scores each layer from its statistics alone. */
export function statisticsCriterion(scoreLayer: (statistics: LayerStatistics) => Float64Array): Criterion {
  return {
    needs: { statistics: true, weights: false },
    async score(request) {
      throwIfAborted(request.signal, "scoring experts");
      return matchingLayers(request).map(scoreLayer);
    },
  };
}

/**
 * The statistics of every MoE layer, once they are known to be of this model.
 * @throws COPPICE_STATS_MISSING, COPPICE_STATS_MODEL
 */
function matchingLayers({ model, statistics }: ScoreRequest): readonly LayerStatistics[] {
  if (!statistics) {
    throw new CoppiceError("COPPICE_STATS_MISSING", "this criterion needs statistics, none were given", {
      hint: "collect them on data of the task first",
    });
  }
  if (statistics.model !== model.fingerprint) {
    throw new CoppiceError(
      "COPPICE_STATS_MODEL",
      `the statistics are of a model with fingerprint "${statistics.model}"; ` +
        `this model has "${model.fingerprint}"`,
      { hint: "collect statistics on this checkpoint" },
    );
  }
  const layers = moeLayers(model);
  const shape = (pairs: readonly (readonly [number, number])[]) =>
    pairs.map(([layer, experts]) => `${layer}:${experts}`).join(" ");
  const found = shape(statistics.layers.map(({ layer, count }) => [layer, count.length]));
  const expected = shape(layers.map(({ index, feedForward }) => [index, feedForward.experts.length]));
  if (found !== expected) {
    throw new CoppiceError(
      "COPPICE_STATS_MODEL",
      `the statistics have layers (layer:experts) ${found || "none"}; the model has ${expected}`,
    );
  }
  return statistics.layers;
}
