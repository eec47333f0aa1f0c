import type { QuantizeRequest } from "@coppice/core";
import { emptyGrid, type Grid, rangeOf, roundScales } from "./grid.js";

/** Share of a group's range that a grid covers, at the least, and the steps in which shares are tried. */
const leastShare = 0.5;
const shareStep = 0.025;
/** Symmetric grids have one code more below zero than above: beyond 1 the largest positive value gets its own code. */
const mostShare = 1.15;

export interface FitGridOptions {
  /** Whether ranges smaller than that of the values are tried; else the range is that of the values. */
  readonly clip: boolean;
  /** [columns], weights of squared errors, such as mean squared inputs; absent: all count the same. */
  readonly importance?: Float64Array;
}

/**
 * The grid of every group with the least sum of squared rounding errors among a list of grids:
 *
 * - symmetric: s = ± share * max|w| / 2^(bits - 1), where of both signs one gives the largest magnitude the code 0, which
 *   has no counterpart above the zero point (the trick of llama.cpp's Q4_0)
 * - asymmetric: s = share * (max - min) / (2^bits - 1), z = round(-share * min / s), where 0 is part of the range
 *
 * Scales are rounded to their dtype before errors are compared, so that the search sees what is stored.
 */
export function fitGrid(request: Omit<QuantizeRequest, "inputs">, options: FitGridOptions): Grid {
  const { weights, rows, columns, format, scales: dtype } = request;
  const { groupSize, symmetric, bits } = format;
  const groups = columns / groupSize;
  const grid = emptyGrid({ rows, columns, format });
  const shares = symmetric ? symmetricShares(options.clip) : asymmetricShares(options.clip);
  const scales = new Float32Array(shares.length);
  const most = 2 ** bits - 1;
  for (let row = 0; row < rows; row++) {
    for (let group = 0; group < groups; group++) {
      const start = row * columns + group * groupSize;
      const [low, high] = rangeOf(weights, start, start + groupSize);
      if (low === high) continue;
      const unit = symmetric ? Math.max(-low, high) / 2 ** (bits - 1) : (high - low) / most;
      for (let i = 0; i < shares.length; i++) scales[i] = unit * (shares[i] as number);
      roundScales(scales, dtype);
      let least = Number.POSITIVE_INFINITY;
      for (let i = 0; i < shares.length; i++) {
        const scale = scales[i] as number;
        const zero = symmetric ? 2 ** (bits - 1) : zeroPoint(low * (shares[i] as number), scale, most);
        const error = groupError(
          weights,
          start,
          groupSize,
          group * groupSize,
          scale,
          zero,
          most,
          least,
          options.importance,
        );
        if (error >= least) continue;
        least = error;
        grid.scales[row * groups + group] = scale;
        grid.zeros[row * groups + group] = zero;
      }
    }
  }
  return grid;
}

function zeroPoint(low: number, scale: number, most: number): number {
  return scale === 0 ? 0 : Math.min(most, Math.max(0, Math.round(-low / scale)));
}

/** Both signs, the whole range first. */
function symmetricShares(clip: boolean): number[] {
  if (!clip) return [1, -1];
  const shares = sharesFrom(mostShare);
  return shares.flatMap((share) => [share, -share]);
}

function asymmetricShares(clip: boolean): number[] {
  return clip ? sharesFrom(1) : [1];
}

function sharesFrom(most: number): number[] {
  const steps = Math.round((most - leastShare) / shareStep);
  return Array.from({ length: steps + 1 }, (_, step) => most - step * shareStep);
}

/** Sum of squared errors; stops once it is above `limit`. */
function groupError(
  weights: Float32Array,
  start: number,
  size: number,
  column: number,
  scale: number,
  zero: number,
  most: number,
  limit: number,
  importance: Float64Array | undefined,
): number {
  // As `nearestCode`, but for the rounding of the quotient: this loop is most of the work.
  const inverse = scale === 0 ? 0 : 1 / scale;
  const lowest = -zero;
  const highest = most - zero;
  let sum = 0;
  for (let i = 0; i < size && sum < limit; i++) {
    const value = weights[start + i] as number;
    const step = Math.min(Math.max(Math.round(value * inverse), lowest), highest);
    const difference = step * scale - value;
    sum += difference * difference * (importance === undefined ? 1 : (importance[column + i] as number));
  }
  return sum;
}
