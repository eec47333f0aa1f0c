import {
  CoppiceError,
  type Criterion,
  type ExtraField,
  type LayerStatistics,
  moeLayers,
  type ScoreRequest,
  throwIfAborted,
} from "@coppice/core";

/**
 * A criterion that scores each layer from its statistics alone.
 * @param extras what it needs of what is collected on demand
 */
export function statisticsCriterion(
  scoreLayer: (statistics: LayerStatistics) => Float64Array,
  extras: readonly ExtraField[] = [],
): Criterion {
  return modelCriterion((layers) => layers.map(scoreLayer), extras);
}

/** A criterion that scores all layers together from their statistics. */
export function modelCriterion(
  score: (layers: readonly LayerStatistics[]) => Float64Array[],
  extras: readonly ExtraField[],
): Criterion {
  return {
    needs: { statistics: true, weights: false, extras },
    async score(request) {
      throwIfAborted(request.signal, "scoring experts");
      return score(matchingLayers(request));
    },
  };
}

/**
 * What is collected on demand, in the order of `fields`.
 * @throws COPPICE_STATS_MISSING when some of it was not
 */
export function requireExtras(
  statistics: LayerStatistics,
  fields: readonly ExtraField[],
  criterion: string,
): Float64Array[] {
  const found = fields.map((field) => statistics[field]).filter((sums) => sums !== undefined);
  if (found.length === fields.length) return found;
  const missing = fields.filter((field) => !statistics[field]);
  throw new CoppiceError(
    "COPPICE_STATS_MISSING",
    `the criterion ${criterion} needs ${missing.join(" and ")}, which these statistics do not have`,
    {
      hint: `collect them with \`coppice calibrate --with ${fields.join(",")}\``,
      details: { criterion, fields: missing },
    },
  );
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
