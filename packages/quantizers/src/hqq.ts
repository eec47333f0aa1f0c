import { definePlugin, type QuantizedMatrix, type QuantizeRequest, type Quantizer } from "@coppice/core";
import * as v from "valibot";
import { emptyGrid, nearestCode, packMatrix, rangeOf, roundScales, roundToGrid } from "./grid.js";

/** Options of the plugin `hqq`. */
export interface HqqOptions {
  /** The p of the norm ‖W - Ŵ‖_p^p that is made small, below 1 so that few large errors are allowed; default 0.7. */
  readonly norm?: number;
  /** Most steps; default 20. */
  readonly steps?: number;
}

declare module "@coppice/core" {
  interface QuantizerPlugins {
    hqq: HqqOptions;
  }
}

/** First weight of the penalty, and its growth per step, of the authors' code. */
const firstPenalty = 10;
const penaltyGrowth = 1.01;
/** Steps in a row without a better grid after which a group is done: one for the zero point, one for the scale. */
const patience = 2;

/**
 * Half-quadratic quantization (Badri and Shaji 2023; mobiusml/hqq, `optimize_weights_proximal_legacy`). Needs no data. Of
 * every group, in turn: codes q = round(w / s) + z; errors that are allowed e = shrink(w - (q - z) s), with
 * shrink(x) = sign(x) max(0, |x| - |x|^(p-1) / β); the grid that fits w - e best; β grows.
 *
 * Differences: zero points are whole numbers in the end, as all targets execute them, so every step is judged with the
 * rounded grid and each group keeps its best step; in the authors' code zero points are real and the steps of a whole
 * matrix end together. To make up for that the scale is fitted as well (least squares), in turns with the zero
 * point; in symmetric formats, where z is fixed, it alone.
 */
export const hqq = definePlugin({
  kind: "quantizer",
  name: "hqq",
  contract: 1,
  summary: "Fits the grid of every group to all but a few large errors (half-quadratic quantization).",
  reference: "https://mobiusml.github.io/hqq_blog/",
  options: v.strictObject({
    norm: v.exactOptional(v.pipe(v.number(), v.minValue(0.1), v.maxValue(1)), 0.7),
    steps: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(1), v.maxValue(1000)), 20),
  }),
  create: (options): Quantizer => ({
    needs: { inputs: false },
    quantize: async (request) => ({ matrix: halfQuadratic(request, options) }),
  }),
});

function halfQuadratic(request: QuantizeRequest, options: Required<HqqOptions>): QuantizedMatrix {
  const { weights, rows, columns, format } = request;
  const { groupSize } = format;
  const grid = emptyGrid(request);
  for (let group = 0; group < (rows * columns) / groupSize; group++) {
    const values = weights.subarray(group * groupSize, (group + 1) * groupSize);
    const fitted = fitGroup(values, request, options);
    grid.scales[group] = fitted.scale;
    grid.zeros[group] = fitted.zero;
  }
  return packMatrix(roundToGrid(weights, request, grid), request, grid);
}

interface GroupGrid {
  readonly scale: number;
  /** A whole number. */
  readonly zero: number;
}

/** The best grid of a group: symmetric ones are begun with either sign of the scale (see `fitGrid`). */
function fitGroup(values: Float32Array, request: QuantizeRequest, options: Required<HqqOptions>): GroupGrid {
  const { bits, symmetric } = request.format;
  const [low, high] = rangeOf(values, 0, values.length);
  if (!symmetric) {
    const scale = storedScale((high - low) / (2 ** bits - 1), request);
    return takeSteps(values, { scale, zero: scale === 0 ? 0 : -low / scale }, request, options);
  }
  const scale = storedScale(Math.max(-low, high) / 2 ** (bits - 1), request);
  const zero = 2 ** (bits - 1);
  const plus = takeSteps(values, { scale, zero }, request, options);
  const minus = takeSteps(values, { scale: -scale, zero }, request, options);
  return plus.error <= minus.error ? plus : minus;
}

/** @param start grid to begin with; its zero point may lie between whole numbers */
function takeSteps(
  values: Float32Array,
  start: GroupGrid,
  request: QuantizeRequest,
  { norm, steps }: Required<HqqOptions>,
): GroupGrid & { readonly error: number } {
  const { bits, symmetric } = request.format;
  const most = 2 ** bits - 1;
  let { scale, zero } = start;
  let best = { scale, zero: wholeZero(zero, most), error: 0 };
  if (scale === 0) return best;
  best.error = groupNorm(values, best, most, norm);
  let penalty = firstPenalty;
  let worse = 0;
  for (let step = 0; step < steps && worse < patience; step++) {
    const free = penalty ** (-1 / (2 - norm));
    const fitsScale = symmetric || step % 2 === 1;
    let sum = 0;
    let weight = 0;
    for (const value of values) {
      const code = Math.min(Math.max(Math.round(value / scale + zero), 0), most);
      const error = value - (code - zero) * scale;
      // Where the penalty exceeds the error nothing is allowed, which spares most powers.
      const allowed = Math.abs(error) <= free ? 0 : shrink(error, norm, penalty);
      if (fitsScale) {
        sum += (code - zero) * (value - allowed);
        weight += (code - zero) ** 2;
      } else {
        sum += code - (value - allowed) / scale;
        weight++;
      }
    }
    if (weight === 0) break;
    if (fitsScale) scale = storedScale(sum / weight, request);
    else zero = sum / weight;
    if (scale === 0) break;
    penalty *= penaltyGrowth;
    const grid = { scale, zero: wholeZero(zero, most) };
    const error = groupNorm(values, grid, most, norm);
    if (error < best.error) {
      best = { ...grid, error };
      worse = 0;
    } else worse++;
  }
  return best;
}

const rounded = new Float32Array(1);

function storedScale(scale: number, { scales }: QuantizeRequest): number {
  rounded[0] = scale;
  return roundScales(rounded, scales)[0] as number;
}

/** The part of an error that is not held against the grid. */
function shrink(error: number, norm: number, penalty: number): number {
  const magnitude = Math.abs(error);
  return Math.sign(error) * Math.max(0, magnitude - magnitude ** (norm - 1) / penalty);
}

function wholeZero(zero: number, most: number): number {
  return Math.min(Math.max(Math.round(zero), 0), most);
}

/** ‖w - ŵ‖_p^p of a group on a grid. */
function groupNorm(values: Float32Array, { scale, zero }: GroupGrid, most: number, norm: number): number {
  let sum = 0;
  for (const value of values) {
    const error = Math.abs((nearestCode(value, scale, zero, most) - zero) * scale - value);
    sum += error ** norm;
  }
  return sum;
}
