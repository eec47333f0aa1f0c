import {
  CoppiceError,
  type ExtraField,
  elementCount,
  layerSizes,
  type MoeModel,
  moeLayers,
  type SampleField,
  sampleShape,
  statisticsFields,
  statisticsShape,
} from "@coppice/core";

/**
 * Most bytes of statistics, in memory as in a file: writing and reading them takes about twice that. 94 layers of 512
 * experts take 200 MB unless more is collected on demand.
 */
export const statisticsLimit = 2 ** 30;

/** What statistics hold beside what all have. */
export interface StatisticsContent {
  readonly extras: readonly ExtraField[];
  /** Empty without a sample. */
  readonly sample: readonly SampleField[];
  /** Tokens in the sample. */
  readonly sampled: number;
}

/** Bytes of the values of one layer, or of all MoE layers. */
export function statisticsBytes(model: MoeModel, content: StatisticsContent, layer?: number): number {
  const { extras, sample, sampled } = content;
  let bytes = 0;
  for (const moe of moeLayers(model)) {
    if (layer !== undefined && moe.index !== layer) continue;
    const sizes = layerSizes(moe, model);
    for (const field of [...statisticsFields, ...extras]) {
      bytes += Float64Array.BYTES_PER_ELEMENT * elementCount(statisticsShape(field, sizes));
    }
    for (const field of sample) {
      bytes += Float32Array.BYTES_PER_ELEMENT * elementCount(sampleShape(field, sampled, sizes));
    }
  }
  return bytes;
}

/** @throws COPPICE_USAGE when the statistics would be larger than `statisticsLimit` */
export function checkStatisticsSize(model: MoeModel, content: StatisticsContent): void {
  const bytes = statisticsBytes(model, content);
  if (bytes <= statisticsLimit) return;
  const { extras, sample, sampled } = content;
  const more = [
    ...extras,
    ...(sample.length > 0 ? [`a sample of ${sampled} tokens (${sample.join(", ")})`] : []),
  ];
  throw new CoppiceError(
    "COPPICE_USAGE",
    `the statistics would take ${megabytes(bytes)}, with ${more.join(", ")}; expected at most ${megabytes(statisticsLimit)}`,
    { hint: "sample fewer tokens, keep less of them, or collect less on demand", details: { bytes } },
  );
}

function megabytes(bytes: number): string {
  return `${Math.ceil(bytes / 1e6).toLocaleString("en")} MB`;
}
