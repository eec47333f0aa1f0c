import type { CoppiceError } from "@coppice/core";
import {
  type DataKind,
  dataKinds,
  type SourceOptions,
  type StatisticsSource,
} from "./collected-statistics.js";

/** Longest record of sources that is parsed: some 50,000 of them. */
const recordLimit = 16 * 2 ** 20;

/** The sources as the text that a statistics file holds. */
export function encodeSources(sources: readonly StatisticsSource[]): string {
  return JSON.stringify(
    sources.map(({ name, hash, sequences, tokens, kind, weight, options }) => ({
      name,
      hash,
      sequences,
      tokens,
      kind,
      weight,
      // Equal options give equal text, whatever order they were set in.
      options: Object.fromEntries(Object.entries(options).sort(([a], [b]) => (a < b ? -1 : 1))),
    })),
  );
}

/** @param fail makes the error to throw */
export function parseSources(
  text: string | undefined,
  fail: (message: string, cause?: unknown) => CoppiceError,
): StatisticsSource[] {
  if (text === undefined || text.length > recordLimit) {
    throw fail(`its sources have ${text?.length ?? "no"} characters, expected up to ${recordLimit}`);
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw fail("its sources are not JSON", cause);
  }
  if (!Array.isArray(parsed) || parsed.length === 0) throw fail("its sources are no list");
  return parsed.map((entry: unknown, i) => {
    const { name, hash, sequences, tokens, kind, weight, options } = (entry ?? {}) as Record<string, unknown>;
    if (
      typeof name !== "string" ||
      typeof hash !== "string" ||
      !isCount(sequences) ||
      !isCount(tokens) ||
      !isKind(kind) ||
      !isWeight(weight) ||
      !isOptions(options)
    ) {
      throw fail(
        `source ${i} is ${show(entry)}, expected name, hash, sequences, tokens, kind, weight and options`,
      );
    }
    return { name, hash, sequences, tokens, kind, weight, options: { ...options } };
  });
}

export function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

/** A value for a message. */
export function show(value: unknown): string {
  return (JSON.stringify(value) ?? String(value)).slice(0, 80);
}

function isKind(value: unknown): value is DataKind {
  return dataKinds.some((kind) => kind === value);
}

function isWeight(value: unknown): value is number {
  return typeof value === "number" && value > 0 && value < Number.POSITIVE_INFINITY;
}

function isOptions(value: unknown): value is SourceOptions {
  return (
    typeof value === "object" &&
    value !== null &&
    !Array.isArray(value) &&
    Object.values(value).every((option) => ["string", "number", "boolean"].includes(typeof option))
  );
}
