import type { ScoreRequest } from "./criterion.js";
import { CoppiceError } from "./errors.js";
import { moeLayers } from "./model.js";
import type { LayerStatistics } from "./statistics.js";

/**
 * The statistics of every MoE layer, once they are known to be of this model.
 * @throws COPPICE_STATS_MISSING, COPPICE_STATS_MODEL
 */
export function matchingStatistics({
  model,
  statistics,
}: Pick<ScoreRequest, "model" | "statistics">): readonly LayerStatistics[] {
  if (!statistics) {
    throw new CoppiceError("COPPICE_STATS_MISSING", "statistics are needed, none were given", {
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
