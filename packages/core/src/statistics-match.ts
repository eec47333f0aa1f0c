import type { Criterion, ScoreRequest } from "./criterion.js";
import { CoppiceError } from "./errors.js";
import { moeLayers } from "./model.js";
import { extrasOf, type LayerStatistics, type Statistics, sampleFieldsOf } from "./statistics.js";

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

/**
 * Refuses statistics that lack what a criterion or merger needs of what is collected on demand, with the options of
 * `coppice calibrate` that collect it.
 * @param name of the plugin, for the message
 * @throws COPPICE_STATS_MISSING
 */
export function checkCollected(
  statistics: Statistics,
  { extras = [], sample = [] }: Pick<Criterion["needs"], "extras" | "sample">,
  name: string,
): void {
  const [haveExtras, haveSample] = [extrasOf(statistics), sampleFieldsOf(statistics)];
  const missing = {
    extras: extras.filter((field) => !haveExtras.includes(field)),
    sample: sample.filter((field) => !haveSample.includes(field)),
  };
  const parts = [
    ...missing.extras,
    ...(missing.sample.length > 0 ? [`a sample of tokens with ${missing.sample.join(" and ")}`] : []),
  ];
  if (parts.length === 0) return;
  throw new CoppiceError(
    "COPPICE_STATS_MISSING",
    `${name} needs ${parts.join(" and ")}, which these statistics do not have`,
    {
      hint: `collect them with \`coppice calibrate ${collectingFlags({ extras, sample })}\``,
      details: { name, ...missing },
    },
  );
}

/** The options of `coppice calibrate` that collect what is collected on demand. */
export function collectingFlags({
  extras = [],
  sample = [],
}: Pick<Criterion["needs"], "extras" | "sample">): string {
  return [
    ...(extras.length > 0 ? [`--with ${extras.join(",")}`] : []),
    ...(sample.length > 0 ? [`--sample ${sample.join(",")}`] : []),
  ].join(" ");
}
