import {
  CoppiceError,
  elementCount,
  type LayerStatistics,
  type Statistics,
  type StatisticsField,
  statisticsFields,
  statisticsShape,
} from "@coppice/core";

/**
 * What the tokens are: pieces of `text`, `prompts` alone, prompts with the `answers` of the data behind them, or with
 * the model's own `generations` behind them.
 */
export const dataKinds = ["text", "prompts", "answers", "generations"] as const;
export type DataKind = (typeof dataKinds)[number];

/** How the data became tokens, such as `{ chat: true, limit: 200 }`. */
export type SourceOptions = Readonly<Record<string, string | number | boolean>>;

/** Data that statistics were collected on. */
export interface StatisticsSource {
  /** What its owner calls it, such as a file name; free text. */
  readonly name: string;
  /** SHA-256 of the token sequences, 64 hex digits: equal for equal tokens in equal order. */
  readonly hash: string;
  readonly sequences: number;
  readonly tokens: number;
  readonly kind: DataKind;
  /** What each of its tokens counts; 1 unless scaled. */
  readonly weight: number;
  readonly options: SourceOptions;
}

/** Statistics with a record of the data they come from. `tokens` is the sum of tokens times weight of the sources. */
export interface CollectedStatistics extends Statistics {
  readonly sources: readonly StatisticsSource[];
}

/**
 * The statistics of the union of two disjoint sets of data: exact in the counts (unless they were scaled), and in the
 * sums up to the rounding of one float64 addition. Sources are listed by name, so that the order of merging shows
 * nowhere else than in that rounding.
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
    sources: [...a.sources, ...b.sources].sort(
      (one, other) => compare(one.name, other.name) || compare(one.hash, other.hash),
    ),
    layers: a.layers.map((layer, i) => addLayers(layer, b.layers[i] as LayerStatistics)),
  };
}

/**
 * Statistics in which every token counts `weight` times, for mixtures of data in proportions other than their sizes.
 * @throws COPPICE_USAGE unless weight is a finite number above 0
 */
export function scaleStatistics(statistics: CollectedStatistics, weight: number): CollectedStatistics {
  if (!(weight > 0 && weight < Number.POSITIVE_INFINITY)) {
    throw new CoppiceError("COPPICE_USAGE", `the weight is ${weight}, expected a finite number above 0`);
  }
  return {
    model: statistics.model,
    tokens: statistics.tokens * weight,
    sources: statistics.sources.map((source) => ({ ...source, weight: source.weight * weight })),
    layers: statistics.layers.map((layer) => {
      const scaled = emptyLayer(layer.layer, layer.count.length);
      scaled.tokens = layer.tokens * weight;
      for (const field of statisticsFields) scaled[field].set(layer[field].map((value) => value * weight));
      return scaled;
    }),
  };
}

/** Statistics of one layer over no tokens. */
export function emptyLayer(layer: number, experts: number): LayerStatistics {
  const sums = Object.fromEntries(
    statisticsFields.map((field) => [field, new Float64Array(elementCount(statisticsShape(field, experts)))]),
  );
  return { layer, tokens: 0, ...(sums as Record<StatisticsField, Float64Array>) };
}

function addLayers(a: LayerStatistics, b: LayerStatistics): LayerStatistics {
  const sum = emptyLayer(a.layer, a.count.length);
  sum.tokens = a.tokens + b.tokens;
  for (const field of statisticsFields) {
    const [out, one, other] = [sum[field], a[field], b[field]];
    for (let i = 0; i < out.length; i++) out[i] = (one[i] as number) + (other[i] as number);
  }
  return sum;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function shape({ layers }: Statistics): string {
  return layers.map(({ layer, count }) => `${layer}:${count.length}`).join(" ");
}
