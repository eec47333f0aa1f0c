import { CoppiceError, type LayerStatistics, type Statistics, statisticsFields } from "@coppice/core";

/** Data that statistics were collected on. */
export interface StatisticsSource {
  /** What its owner calls it, such as a file name; free text. */
  readonly name: string;
  /** SHA-256 of the token sequences, 64 hex digits: equal for equal tokens in equal order. */
  readonly hash: string;
  readonly sequences: number;
  readonly tokens: number;
}

/** Statistics with a record of the data they come from. */
export interface CollectedStatistics extends Statistics {
  readonly sources: readonly StatisticsSource[];
}

/**
 * The statistics of the union of two disjoint sets of data: exact in the counts, and in the sums up to the rounding
 * of one float64 addition.
 * @throws COPPICE_STATS_MODEL when they are of different models; COPPICE_USAGE when both hold the same data, which
 * would count twice
 */
export function mergeStatistics(a: CollectedStatistics, b: CollectedStatistics): CollectedStatistics {
  if (a.model !== b.model || shape(a) !== shape(b)) {
    throw new CoppiceError(
      "COPPICE_STATS_MODEL",
      `statistics of different models cannot be added: "${a.model}" with layers (layer:experts) ${shape(a)}, ` +
        `and "${b.model}" with ${shape(b)}`,
    );
  }
  const twice = a.sources.find(({ hash }) => b.sources.some((source) => source.hash === hash));
  if (twice) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `both statistics hold the ${twice.tokens} tokens of "${twice.name}" (hash ${twice.hash.slice(0, 12)}…), ` +
        "which would count twice",
      { hint: "add statistics of disjoint data", details: { source: twice } },
    );
  }
  return {
    model: a.model,
    tokens: a.tokens + b.tokens,
    sources: [...a.sources, ...b.sources],
    layers: a.layers.map((layer, i) => addLayers(layer, b.layers[i] as LayerStatistics)),
  };
}

/** Statistics of one layer over no tokens. */
export function emptyLayer(layer: number, experts: number): LayerStatistics {
  const sums = Object.fromEntries(statisticsFields.map((field) => [field, new Float64Array(experts)]));
  return { layer, tokens: 0, ...(sums as Record<(typeof statisticsFields)[number], Float64Array>) };
}

function addLayers(a: LayerStatistics, b: LayerStatistics): LayerStatistics {
  const sum = emptyLayer(a.layer, a.count.length);
  sum.tokens = a.tokens + b.tokens;
  for (const field of statisticsFields) {
    sum[field].set(a[field].map((value, expert) => value + (b[field][expert] as number)));
  }
  return sum;
}

function shape({ layers }: Statistics): string {
  return layers.map(({ layer, count }) => `${layer}:${count.length}`).join(" ");
}
