import {
  CoppiceError,
  type ExtraField,
  elementCount,
  extraFields,
  extrasOf,
  type LayerSample,
  type LayerSizes,
  type LayerStatistics,
  type SampleField,
  type Statistics,
  type StatisticsField,
  sampleFieldsOf,
  sampleShape,
  statisticsFields,
  statisticsShape,
} from "@coppice/core";
import { type MergedSample, mergeSamples, pickSample } from "./token-sample.js";

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
  const [content, other] = [contentOf(a), contentOf(b)];
  if (content !== other) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `one of the statistics has ${content} of what is collected on demand, the other ${other}`,
      { hint: "collect the same of both: equal extras, and a sample with equal fields or none" },
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
    ...addStatistics(a, b),
    sources: [...a.sources, ...b.sources].sort(
      (one, other) => compare(one.name, other.name) || compare(one.hash, other.hash),
    ),
  };
}

/** Adds statistics that are known to be alike, with the sources of the first. */
export function addStatistics(a: CollectedStatistics, b: CollectedStatistics): CollectedStatistics {
  const merged = a.sample && b.sample && mergeSamples(a.sample, b.sample);
  return {
    model: a.model,
    tokens: a.tokens + b.tokens,
    sources: a.sources,
    layers: a.layers.map((layer, i) => addLayers(layer, b.layers[i] as LayerStatistics, merged)),
    ...(merged && { sample: merged.sample }),
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
  const { sample } = statistics;
  return {
    model: statistics.model,
    tokens: statistics.tokens * weight,
    sources: statistics.sources.map((source) => ({ ...source, weight: source.weight * weight })),
    layers: statistics.layers.map((layer) => {
      const sums = [...statisticsFields, ...extraFields].flatMap((field) => {
        // A largest value is no sum.
        const factor = field === "peak" ? 1 : weight;
        return layer[field] ? [[field, layer[field].map((value) => value * factor)] as const] : [];
      });
      return { ...layer, ...Object.fromEntries(sums), tokens: layer.tokens * weight };
    }),
    ...(sample && { sample: { ...sample, priorities: sample.priorities.map((value) => value / weight) } }),
  };
}

/**
 * Statistics of one layer over no tokens.
 * @param extras what is collected on demand
 * @param sample fields of a sample, empty without one, and its tokens
 */
export function emptyLayer(
  layer: number,
  sizes: LayerSizes,
  extras: readonly ExtraField[],
  sample: { readonly fields: readonly SampleField[]; readonly tokens: number },
): LayerStatistics {
  const sums = Object.fromEntries(
    [...statisticsFields, ...extras].map((field) => [
      field,
      new Float64Array(elementCount(statisticsShape(field, sizes))),
    ]),
  );
  const rows = Object.fromEntries(
    sample.fields.map((field) => [
      field,
      new Float32Array(elementCount(sampleShape(field, sample.tokens, sizes))),
    ]),
  );
  return {
    layer,
    tokens: 0,
    ...(sums as Record<StatisticsField, Float64Array>),
    ...(sample.fields.length > 0 && { sample: rows as unknown as LayerSample }),
  };
}

/** Sizes as far as the fields of a layer show them, else 0. */
export function sizesOf({ count, sample, ...sums }: LayerStatistics): LayerSizes {
  const experts = count.length;
  const tokens = sample ? sample.logits.length / experts : 0;
  const [units, inputs] = [sample?.units, sample?.inputs];
  const perExpert = (values: Float64Array | undefined) => (values ? values.length / experts : undefined);
  return {
    experts,
    hidden:
      perExpert(sums.outputSum ?? sums.everyOutputSum) ?? (inputs && tokens ? inputs.length / tokens : 0),
    width: perExpert(sums.unitSquares) ?? (units && tokens ? units.length / (tokens * experts) : 0),
  };
}

function addLayers(
  a: LayerStatistics,
  b: LayerStatistics,
  merged: MergedSample | undefined,
): LayerStatistics {
  const sums: Record<string, Float64Array> = {};
  for (const field of [...statisticsFields, ...extraFields]) {
    const [one, other] = [a[field], b[field]];
    if (!one || !other) continue;
    const sum = new Float64Array(one.length);
    for (let i = 0; i < sum.length; i++) {
      const [x, y] = [one[i] as number, other[i] as number];
      sum[i] = field === "peak" ? Math.max(x, y) : x + y;
    }
    sums[field] = sum;
  }
  const sample = merged && a.sample && b.sample && pickSample(merged, a.sample, b.sample);
  return {
    layer: a.layer,
    tokens: a.tokens + b.tokens,
    ...(sums as Record<StatisticsField, Float64Array>),
    ...(sample && { sample }),
  };
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** "change, a sample of logits, inputs" */
function contentOf(statistics: Statistics): string {
  const fields = sampleFieldsOf(statistics);
  const sample = fields.length > 0 ? [`a sample of ${fields.join(", ")}`] : [];
  return [...extrasOf(statistics), ...sample].join(", ") || "nothing";
}

function shape({ layers }: Statistics): string {
  return layers.map(({ layer, count }) => `${layer}:${count.length}`).join(" ");
}
