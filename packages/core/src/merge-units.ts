import type { UnitSource } from "./plan.js";

/** One matrix (or bias) of the expert that a source names. */
export interface UnitValues {
  readonly source: UnitSource;
  readonly values: Float32Array;
}

/**
 * The rows of a matrix whose rows belong to hidden units (gate and up [width, size]; their biases with size 1): row t is
 * the sum, over all units u of all sources with `to[u] = t`, of `rows[u]` times row u. Sums are float64 in the order of
 * sources and units, and rounded to float32 once. Like `mergeRows`, this is the one definition of its rounding.
 * @param out [width, size], overwritten; must not be one of the sources
 */
export function mergeUnitRows(sources: readonly UnitValues[], size: number, out: Float32Array): void {
  const width = out.length / size;
  const givers = unitsByTarget(sources, width);
  const sum = new Float64Array(size);
  for (let target = 0; target < width; target++) {
    sum.fill(0);
    for (const { source, unit } of givers[target] as readonly Giver[]) {
      const { source: from, values } = sources[source] as UnitValues;
      const factor = at(from.rows, unit);
      const start = unit * size;
      for (let i = 0; i < size; i++) sum[i] = (sum[i] as number) + factor * (values[start + i] as number);
    }
    out.set(sum, target * size);
  }
}

/**
 * The columns of down [hidden, width], which belong to hidden units: column t is the sum, over all units u of all
 * sources with `to[u] = t`, of `columns[u]` times column u; summed and rounded as in `mergeUnitRows`. Rows of the
 * matrix do not depend on one another, so it may be merged in pieces of whole rows.
 * @param out [rows, width], overwritten; must not be one of the sources
 */
export function mergeUnitColumns(sources: readonly UnitValues[], width: number, out: Float32Array): void {
  const rows = out.length / width;
  const sum = new Float64Array(width);
  for (let row = 0; row < rows; row++) {
    sum.fill(0);
    for (const { source, values } of sources) {
      const { to, columns } = source;
      const start = row * to.length;
      for (let unit = 0; unit < to.length; unit++) {
        const target = to[unit] as number;
        if (target < 0) continue;
        sum[target] = (sum[target] as number) + at(columns, unit) * (values[start + unit] as number);
      }
    }
    out.set(sum, row * width);
  }
}

/**
 * One part of an expert that is put together unit by unit; `downBias`, which no unit owns, merges by `mergeRows`.
 * @param width hidden units of the slot
 */
export function mergeUnits(
  part: "gate" | "up" | "down" | "gateBias" | "upBias",
  sources: readonly UnitValues[],
  width: number,
  out: Float32Array,
): void {
  if (part === "down") mergeUnitColumns(sources, width, out);
  else mergeUnitRows(sources, out.length / width, out);
}

interface Giver {
  readonly source: number;
  readonly unit: number;
}

function unitsByTarget(sources: readonly UnitValues[], width: number): Giver[][] {
  const givers = Array.from({ length: width }, () => [] as Giver[]);
  for (const [source, { source: from }] of sources.entries()) {
    for (const [unit, target] of from.to.entries()) if (target >= 0) givers[target]?.push({ source, unit });
  }
  return givers;
}

function at(factors: number | readonly number[], unit: number): number {
  return typeof factors === "number" ? factors : (factors[unit] as number);
}
