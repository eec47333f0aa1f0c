import {
  packBits,
  type QuantizedFormat,
  type QuantizedMatrix,
  roundToDtype,
  type ScaleDType,
} from "@coppice/core";

/** Scale and zero point of every group of a matrix: `w = (q - z) * s`. */
export interface Grid {
  /** [rows, groups], values of the dtype that stores them. */
  readonly scales: Float32Array;
  /** [rows, groups] */
  readonly zeros: Uint8Array;
}

/** Sizes of a matrix in groups. */
export interface GroupShape {
  readonly rows: number;
  readonly columns: number;
  readonly format: QuantizedFormat;
}

export function emptyGrid({ rows, columns, format }: GroupShape): Grid {
  const count = rows * (columns / format.groupSize);
  return {
    scales: new Float32Array(count),
    zeros: new Uint8Array(count).fill(2 ** (format.bits - 1)),
  };
}

/** The code of the grid that is nearest to a value; a scale of 0 stands for zeros alone. */
export function nearestCode(value: number, scale: number, zero: number, most: number): number {
  if (scale === 0) return zero;
  const code = Math.round(value / scale) + zero;
  return Math.min(Math.max(code, 0), most);
}

/** Rounds every value to the grid of its group. @returns codes [rows, columns], a byte each */
export function roundToGrid(weights: Float32Array, { columns, format }: GroupShape, grid: Grid): Uint8Array {
  const { groupSize, bits } = format;
  const most = 2 ** bits - 1;
  const groups = columns / groupSize;
  const codes = new Uint8Array(weights.length);
  for (let group = 0; group < (weights.length / columns) * groups; group++) {
    const scale = grid.scales[group] as number;
    const zero = grid.zeros[group] as number;
    for (let i = group * groupSize; i < (group + 1) * groupSize; i++) {
      codes[i] = nearestCode(weights[i] as number, scale, zero, most);
    }
  }
  return codes;
}

/** Codes, a byte each, and their grid as the matrix that is stored. */
export function packMatrix(
  codes: Uint8Array,
  { rows, columns, format }: GroupShape,
  grid: Grid,
): QuantizedMatrix {
  const { bits, groupSize, symmetric } = format;
  return {
    rows,
    columns,
    bits,
    groupSize,
    codes: packBits(codes, rows, bits),
    scales: grid.scales,
    ...(!symmetric && { zeroPoints: packBits(grid.zeros, rows, bits) }),
  };
}

/** Smallest and largest value of a group, 0 included. */
export function rangeOf(
  values: Float32Array,
  start: number,
  end: number,
): readonly [low: number, high: number] {
  let low = 0;
  let high = 0;
  for (let i = start; i < end; i++) {
    const value = values[i] as number;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** Rounds scales in place to the dtype that stores them. */
export function roundScales(scales: Float32Array, dtype: ScaleDType): Float32Array {
  roundToDtype(scales, dtype);
  return scales;
}
