import {
  addDelta,
  mergeRows,
  mergeUnitColumns,
  mergeUnitRows,
  type TensorRef,
  type UnitSource,
  type UnitValues,
  type WeightReader,
} from "@coppice/core";
import type { UnitPlaces } from "../families/expert-tensors.js";
import { matrixRows } from "../matrix-rows.js";
import type { SourceCache } from "../source-cache.js";
import { createWeightReader } from "../weight-reader.js";
import type { MergeScratch } from "./content.js";

/** A matrix [R, C] that is computed some rows at a time. */
export interface MergedMatrix {
  /** Rows that are asked for at once: a multiple of the rows that share a scale, or all. */
  readonly bandRows: number;
  /** Values of `count` rows from `first` on, in memory that the next call uses again. */
  rows(first: number, count: number, signal: AbortSignal | undefined): Promise<Float32Array>;
}

export interface MergeMemory {
  readonly sources: SourceCache;
  readonly scratch: MergeScratch;
}

/** Values of each source that are merged at once, unless one row of blocks has more. */
const bandValues = 1 << 19;
/** Values of all sources together that are held to merge rows that lie anywhere in them: 64 MiB. */
const gatheredValues = 1 << 24;

/**
 * The weighted sum of matrices (`mergeRows` of core).
 * @param refs matrices of the geometry of `stored`
 */
export function linearMatrix(
  memory: MergeMemory,
  refs: readonly TensorRef[],
  coefficients: readonly number[],
  stored: TensorRef,
): MergedMatrix {
  return bandedMatrix(memory, refs, stored, (values, merged) => mergeRows(values, coefficients, merged));
}

/**
 * Matrices put together unit by unit, as they are stored. Gate and up are merged by their rows and down by its columns
 * (`mergeUnitRows`, `mergeUnitColumns` of core); where a matrix lies transposed it is the other way round, which gives
 * the same sums in the same order.
 * @param refs one per source, of the geometry of `stored`
 * @param most values of all sources together that are held at once where units are rows
 */
export function unitMatrix(
  memory: MergeMemory,
  units: readonly UnitSource[],
  refs: readonly TensorRef[],
  places: UnitPlaces,
  stored: TensorRef,
  most = gatheredValues,
): MergedMatrix {
  const placed = units.map((source) => placeUnits(source, places));
  if (places.axis === 0) return gatheredMatrix(memory, placed, refs, stored, most);
  return bandedMatrix(memory, refs, stored, (values, merged) =>
    mergeUnitColumns(withValues(placed, values), stored.shape[1] as number, merged),
  );
}

/**
 * A down projection with its changes (`addDelta` of core), as it is stored.
 * @param delta gives [hidden, width]; called when the first rows are asked for, and held until the last ones were
 * @param stored [hidden, width], or [width, hidden] where it is transposed
 */
export function changedMatrix(
  matrix: MergedMatrix,
  delta: () => Float32Array,
  stored: TensorRef,
  transposed: boolean,
): MergedMatrix {
  const [height, width] = stored.shape as [number, number];
  let changes: Float32Array | undefined;
  return {
    bandRows: matrix.bandRows,
    async rows(first, count, signal) {
      const values = await matrix.rows(first, count, signal);
      changes ??= transposed ? transpose(delta(), width, height) : delta();
      addDelta(values, changes.subarray(first * width, (first + count) * width));
      // Contents of a whole checkpoint are held until it is written.
      if (first + count === height) changes = undefined;
      return values;
    },
  };
}

/** @param values [rows, columns] */
function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      out[column * rows + row] = values[row * columns + column] as number;
    }
  }
  return out;
}

/** The units of a source as entries of the axis along which they are stored. */
function placeUnits(
  { expert, to, rows, columns }: UnitSource,
  { factors, matrices, interleaved }: UnitPlaces,
): UnitSource {
  const width = to.length;
  const at = (matrix: number, unit: number) =>
    interleaved ? unit * matrices + matrix : matrix * width + unit;
  const targets = new Array<number>(matrices * width);
  const given = factors === "rows" ? rows : columns;
  const each = typeof given === "number" ? undefined : new Array<number>(matrices * width);
  for (let matrix = 0; matrix < matrices; matrix++) {
    for (const [unit, target] of to.entries()) {
      targets[at(matrix, unit)] = target < 0 ? -1 : at(matrix, target);
      if (each) each[at(matrix, unit)] = (given as readonly number[])[unit] as number;
    }
  }
  const factor = each ?? given;
  return { expert, to: targets, rows: factor, columns: factor };
}

function withValues(units: readonly UnitSource[], values: readonly Float32Array[]): UnitValues[] {
  return units.map((source, i) => ({ source, values: values[i] as Float32Array }));
}

/** A matrix each row of which is computed from the same row of the sources. */
function bandedMatrix(
  { sources, scratch }: MergeMemory,
  refs: readonly TensorRef[],
  stored: TensorRef,
  merge: (values: readonly Float32Array[], merged: Float32Array) => void,
): MergedMatrix {
  const reader = createWeightReader(sources);
  const [height, width] = stored.shape as [number, number];
  const block = stored.scales?.rows ?? 1;
  return {
    bandRows: Math.min(height, block * Math.max(1, Math.floor(bandValues / (block * width)))),
    async rows(first, count, signal) {
      const values: Float32Array[] = [];
      for (const [position, ref] of refs.entries()) {
        const into = scratch.floats(position + 1, count * width);
        values.push(await reader.read(rowsOf(ref, first, count), { into, ...(signal && { signal }) }));
      }
      const merged = scratch.floats(0, count * width);
      merge(values, merged);
      return merged;
    },
  };
}

/** A matrix whose rows come from other rows of the sources, each of which is read once. */
function gatheredMatrix(
  { sources, scratch }: MergeMemory,
  units: readonly UnitSource[],
  refs: readonly TensorRef[],
  stored: TensorRef,
  most: number,
): MergedMatrix {
  const reader = createWeightReader(sources);
  const [height, width] = stored.shape as [number, number];
  return {
    bandRows: fittingBand(units, height, stored.scales?.rows ?? 1, Math.floor(most / width)),
    async rows(first, count, signal) {
      const picks = units.map(({ to }) =>
        to.flatMap((target, row) => (target >= first && target < first + count ? [row] : [])),
      );
      const total = picks.reduce((sum, { length }) => sum + length, 0);
      const gathered = scratch.floats(1, total * width);
      const given: UnitValues[] = [];
      let at = 0;
      for (const [i, picked] of picks.entries()) {
        const values = gathered.subarray(at, at + picked.length * width);
        at += values.length;
        await readRows(reader, refs[i] as TensorRef, picked, values, signal);
        given.push({ source: pickUnits(units[i] as UnitSource, picked, first), values });
      }
      const merged = scratch.floats(0, count * width);
      mergeUnitRows(given, width, merged);
      return merged;
    },
  };
}

/** Rows of the result that need at most `most` rows of all sources together, in whole blocks. */
function fittingBand(units: readonly UnitSource[], height: number, block: number, most: number): number {
  const givers = new Int32Array(height);
  for (const { to } of units) {
    for (const target of to) if (target >= 0) givers[target] = (givers[target] as number) + 1;
  }
  const needed = (rows: number) => {
    const sums = new Int32Array(Math.ceil(height / rows));
    for (const [row, count] of givers.entries()) {
      const at = Math.floor(row / rows);
      sums[at] = (sums[at] as number) + count;
    }
    return sums.reduce((largest, sum) => Math.max(largest, sum), 0);
  };
  let rows = height;
  while (rows > block && needed(rows) > most) rows = block * Math.ceil(rows / block / 2);
  return rows;
}

function pickUnits({ expert, to, rows }: UnitSource, picked: readonly number[], first: number): UnitSource {
  return {
    expert,
    to: picked.map((row) => (to[row] as number) - first),
    rows: typeof rows === "number" ? rows : picked.map((row) => rows[row] as number),
    columns: 1,
  };
}

/** Reads under way at once: rows that were permuted are read one by one. */
const parallel = 16;

async function readRows(
  reader: WeightReader,
  ref: TensorRef,
  picked: readonly number[],
  values: Float32Array,
  signal: AbortSignal | undefined,
): Promise<void> {
  const width = ref.shape[1] as number;
  const reads: (() => Promise<unknown>)[] = [];
  for (let at = 0; at < picked.length; ) {
    const start = at;
    const first = picked[start] as number;
    while (at < picked.length && picked[at] === first + at - start) at++;
    const into = values.subarray(start * width, at * width);
    const rows = rowsOf(ref, first, at - start);
    reads.push(() => reader.read(rows, { into, ...(signal && { signal }) }));
  }
  for (let at = 0; at < reads.length; at += parallel) {
    await Promise.all(reads.slice(at, at + parallel).map((read) => read()));
  }
}

/** Rows of a matrix, as a view where they share scales with others. */
function rowsOf(ref: TensorRef, first: number, count: number): TensorRef {
  const width = ref.shape[1] as number;
  const shape = [count, width];
  return (
    matrixRows(ref, first, count) ?? { ...ref, shape, view: { offset: first * width, strides: [width, 1] } }
  );
}
