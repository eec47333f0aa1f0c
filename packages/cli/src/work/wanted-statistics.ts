import { type SampleOptions, statisticsBytes } from "@coppice/calibrate";
import {
  type Criterion,
  type ExtraField,
  type MoeModel,
  type SampleField,
  sampleFields,
} from "@coppice/core";

/** Tokens of a sample unless the user says: enough for a fit or a comparison, few enough to run all experts on. */
export const defaultSampleTokens = 256;
/** What nobody asked for by its size takes at most this much memory. */
const sampleBytes = 2 ** 28;

/** What to collect beside the sums that all statistics have. */
export interface WantedStatistics {
  readonly extras: readonly ExtraField[];
  readonly sample?: SampleOptions;
}

/** What criteria and mergers need that read statistics; of a sample as many tokens as take little memory. */
export function wantedStatistics(model: MoeModel, needs: readonly Criterion["needs"][]): WantedStatistics {
  const sampled = new Set<SampleField>(needs.flatMap(({ sample }) => sample ?? []));
  const fields = sampleFields.filter((field) => sampled.has(field));
  const extras = [...new Set(needs.flatMap(({ extras }) => extras ?? []))];
  if (fields.length === 0) return { extras };
  const bytesOf = (tokens: number) =>
    statisticsBytes(model, { extras, sample: [...new Set(["logits" as const, ...fields])], sampled: tokens });
  const fitting = Math.floor(sampleBytes / (bytesOf(1) - bytesOf(0)));
  return { extras, sample: { limit: Math.max(1, Math.min(defaultSampleTokens, fitting)), with: fields } };
}
