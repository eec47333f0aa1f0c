import {
  CoppiceError,
  type ExtraField,
  elementCount,
  extraFields,
  extrasOf,
  type LayerSizes,
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
 * would count twice, or when not the same was collected on demand
 */
export function mergeStatistics(a: CollectedStatistics, b: CollectedStatistics): CollectedStatistics {
  if (a.model !== b.model || shape(a) !== shape(b)) {
    throw new CoppiceError(
      "COPPICE_STATS_MODEL",
      `statistics of different models cannot be added: "${a.model}" with layers (layer:experts) ${shape(a)}, ` +
        `and "${b.model}" with ${shape(b)}`,
    );
  }
  const [extras, others] = [extrasOf(a), extrasOf(b)];
  if (extras.join() !== others.join()) {
    const named = (fields: readonly string[]) => fields.join(", ") || "nothing";
    throw new CoppiceError(
      "COPPICE_USAGE",
      `one of the statistics has ${named(extras)} of what is collected on demand, the other ${named(others)}`,
      { hint: "collect the same of both" },
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
      const scaled = emptyLike(layer);
      scaled.tokens = layer.tokens * weight;
      for (const field of [...statisticsFields, ...extraFields]) {
        // A largest value is no sum.
        const factor = field === "peak" ? 1 : weight;
        scaled[field]?.set((layer[field] as Float64Array).map((value) => value * factor));
      }
      return scaled;
    }),
  };
}

/**
 * Statistics of one layer over no tokens.
 * @param extras what is collected on demand
 */
export function emptyLayer(
  layer: number,
  sizes: LayerSizes,
  extras: readonly ExtraField[] = [],
): LayerStatistics {
  const sums = Object.fromEntries(
    [...statisticsFields, ...extras].map((field) => [
      field,
      new Float64Array(elementCount(statisticsShape(field, sizes))),
    ]),
  );
  return { layer, tokens: 0, ...(sums as Record<StatisticsField, Float64Array>) };
}

/** Statistics of no tokens with the fields and sizes of another. */
function emptyLike(layer: LayerStatistics): LayerStatistics {
  const extras = extrasOf({ model: "", tokens: 0, layers: [layer] });
  return emptyLayer(layer.layer, sizesOf(layer), extras);
}

/** Sizes as far as the fields of a layer show them, else 0. */
export function sizesOf({ count, ...sums }: LayerStatistics): LayerSizes {
  const experts = count.length;
  const perExpert = (values?: ArrayLike<number>) => (values ? values.length / experts : 0);
  return {
    experts,
    hidden: perExpert(sums.outputSum ?? sums.everyOutputSum),
    width: perExpert(sums.unitSquares),
  };
}

function addLayers(a: LayerStatistics, b: LayerStatistics): LayerStatistics {
  const sum = emptyLike(a);
  sum.tokens = a.tokens + b.tokens;
  for (const field of [...statisticsFields, ...extraFields]) {
    const out = sum[field];
    if (!out) continue;
    const [one, other] = [a[field] as Float64Array, b[field] as Float64Array];
    for (let i = 0; i < out.length; i++) {
      const [x, y] = [one[i] as number, other[i] as number];
      out[i] = field === "peak" ? Math.max(x, y) : x + y;
    }
  }
  return sum;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function shape({ layers }: Statistics): string {
  return layers.map(({ layer, count }) => `${layer}:${count.length}`).join(" ");
}
