import {
  CoppiceError,
  type Criterion,
  type ExtraField,
  type LayerStatistics,
  matchingStatistics,
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
      return score(matchingStatistics(request));
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
