import { type SampleField, type Statistics, sampleFieldsOf } from "@coppice/core";
import { formatBytes } from "@coppice/report";

/** What statistics show of single tokens. */
export interface SampleFacts {
  readonly tokens: number;
  /** Most tokens that it would hold. */
  readonly limit: number;
  readonly fields: readonly SampleField[];
  /** Bytes of the values of all layers. */
  readonly bytes: number;
}

export function sampleOf(statistics: Statistics): SampleFacts | undefined {
  const { sample, layers } = statistics;
  if (!sample) return undefined;
  const fields = sampleFieldsOf(statistics);
  const bytes = layers.flatMap((layer) => fields.map((field) => layer.sample?.[field]?.byteLength ?? 0));
  return {
    tokens: sample.priorities.length,
    limit: sample.limit,
    fields,
    bytes: bytes.reduce((sum, value) => sum + value, 0),
  };
}

export function describeSample({ tokens, limit, fields, bytes }: SampleFacts): string {
  const of = tokens < limit ? ` (all; the limit is ${limit.toLocaleString("en")})` : "";
  return `${tokens.toLocaleString("en")} tokens${of} with ${fields.join(", ")}, ${formatBytes(bytes)}`;
}
