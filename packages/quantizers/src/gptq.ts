import {
  definePlugin,
  type InputSums,
  type QuantizedResult,
  type QuantizeRequest,
  type Quantizer,
} from "@coppice/core";
import * as v from "valibot";
import { fitGrid } from "./fit-grid.js";
import { nearestCode, packMatrix } from "./grid.js";
import { inverseFactor } from "./inverse-factor.js";
import { roundToNearest } from "./rtn.js";

/** Options of the plugin `gptq`. */
export interface GptqOptions {
  /** Added to the diagonal of the gram matrix, as a share of its mean; default 0.01. */
  readonly damp?: number;
  /** Quantize columns by descending mean squared input instead of in their order; default true. */
  readonly actOrder?: boolean;
  /** Matrices with fewer inputs than this are rounded to nearest instead; default 128. */
  readonly leastTokens?: number;
}

declare module "@coppice/core" {
  interface QuantizerPlugins {
    gptq: GptqOptions;
  }
}

/**
 * GPTQ (arXiv 2210.17323; IST-DASLab/gptq): quantizes column after column and moves the error of each to the columns
 * behind it, so that outputs on the calibration inputs change least.
 *
 * Grids are fitted before the first column (static groups), with squared errors weighted by mean squared inputs, so that
 * the order of the columns is free and none has to be stored: runtimes read groups of neighbours. A damping ten times as
 * strong is tried where the matrix cannot be factored.
 */
export const gptq = definePlugin({
  kind: "quantizer",
  name: "gptq",
  contract: 1,
  summary:
    "Moves the error of every column to those that are not rounded yet, by the inputs of your data (GPTQ).",
  reference: "https://arxiv.org/abs/2210.17323",
  options: v.strictObject({
    damp: v.exactOptional(v.pipe(v.number(), v.minValue(1e-6), v.maxValue(1)), 0.01),
    actOrder: v.exactOptional(v.boolean(), true),
    leastTokens: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(1)), 128),
  }),
  create: (options): Quantizer => ({
    needs: { inputs: true },
    quantize: async (request) => {
      const { inputs } = request;
      const why = thinInputs(inputs, options.leastTokens);
      if (!inputs || why !== undefined) return fallback(request, why as string);
      return spreadErrors(request, inputs, options);
    },
  }),
});

/** Why inputs do not suffice; undefined when they do. */
export function thinInputs(inputs: InputSums | undefined, least: number): string | undefined {
  if (!inputs) return "its inputs are not known";
  return inputs.tokens < least ? `${inputs.tokens} inputs, fewer than ${least}` : undefined;
}

export function fallback(request: QuantizeRequest, why: string): QuantizedResult {
  return { matrix: roundToNearest(request), fallback: `rounded to nearest: ${why}` };
}

/** Quantizes column after column; see `gptq`. */
export function spreadErrors(
  request: QuantizeRequest,
  { tokens, gram }: InputSums,
  { damp, actOrder }: Required<Pick<GptqOptions, "damp" | "actOrder">>,
): QuantizedResult {
  const { weights, rows, columns, format } = request;
  const { groupSize, bits } = format;
  const importance = Float64Array.from(
    { length: columns },
    (_, i) => (gram[i * columns + i] as number) / tokens,
  );
  const order = Array.from({ length: columns }, (_, column) => column);
  if (actOrder) order.sort((a, b) => (importance[b] as number) - (importance[a] as number) || a - b);
  const mean = importance.reduce((sum, value) => sum + value, 0) / columns;
  const factor = dampedFactor(gram, tokens, order, damp * mean);
  if (!factor) return fallback(request, "its gram matrix cannot be factored");
  // Damped too, so that columns without inputs get a grid that fits them.
  const grid = fitGrid(request, { clip: true, importance: importance.map((value) => value + damp * mean) });
  const most = 2 ** bits - 1;
  const groups = columns / groupSize;
  const codes = new Uint8Array(rows * columns);
  // Rows do not depend on one another; some at a time share what is read of the factor.
  const band = Math.min(rows, bandRows);
  const left = new Float64Array(band * columns);
  const errors = new Float64Array(band);
  for (let first = 0; first < rows; first += band) {
    const count = Math.min(band, rows - first);
    for (let r = 0; r < count; r++) {
      for (let i = 0; i < columns; i++) {
        left[r * columns + i] = weights[(first + r) * columns + (order[i] as number)] as number;
      }
    }
    for (let i = 0; i < columns; i++) {
      const column = order[i] as number;
      const diagonal = factor[i * columns + i] as number;
      for (let r = 0; r < count; r++) {
        const group = (first + r) * groups + Math.floor(column / groupSize);
        const [scale, zero] = [grid.scales[group] as number, grid.zeros[group] as number];
        const value = left[r * columns + i] as number;
        const code = nearestCode(value, scale, zero, most);
        codes[(first + r) * columns + column] = code;
        errors[r] = (value - (code - zero) * scale) / diagonal;
      }
      moveErrors(left, errors, count, factor.subarray(i * columns, (i + 1) * columns), i + 1);
    }
  }
  return { matrix: packMatrix(codes, request, grid) };
}

const bandRows = 16;

/** left[r, j] -= errors[r] * spread[j] for all j from `start` on. */
function moveErrors(
  left: Float64Array,
  errors: Float64Array,
  rows: number,
  spread: Float64Array,
  start: number,
): void {
  const columns = spread.length;
  let row = 0;
  // Four rows at a time share what is read of `spread`.
  for (; row + 4 <= rows; row += 4) {
    const a = left.subarray(row * columns, (row + 1) * columns);
    const b = left.subarray((row + 1) * columns, (row + 2) * columns);
    const c = left.subarray((row + 2) * columns, (row + 3) * columns);
    const d = left.subarray((row + 3) * columns, (row + 4) * columns);
    const p = errors[row] as number;
    const q = errors[row + 1] as number;
    const r = errors[row + 2] as number;
    const s = errors[row + 3] as number;
    for (let j = start; j < columns; j++) {
      const share = spread[j] as number;
      a[j] = (a[j] as number) - p * share;
      b[j] = (b[j] as number) - q * share;
      c[j] = (c[j] as number) - r * share;
      d[j] = (d[j] as number) - s * share;
    }
  }
  for (; row < rows; row++) {
    const error = errors[row] as number;
    for (let j = start; j < columns; j++) {
      left[row * columns + j] = (left[row * columns + j] as number) - error * (spread[j] as number);
    }
  }
}

/** The latest factor: matrices with the same inputs follow one another. */
let latest: { readonly gram: Float64Array; readonly key: string; readonly factor: Float64Array } | undefined;

/** `inverseFactor` of the mean gram matrix in another order, damped; columns without inputs get a diagonal of 1. */
function dampedFactor(
  gram: Float64Array,
  tokens: number,
  order: readonly number[],
  damp: number,
): Float64Array | undefined {
  const key = `${damp} ${order.join()}`;
  if (latest?.gram === gram && latest.key === key) return latest.factor;
  latest = undefined;
  const n = order.length;
  const factor = new Float64Array(n * n);
  for (const strength of [1, 10, 100]) {
    for (let i = 0; i < n; i++) {
      const row = (order[i] as number) * n;
      for (let j = 0; j < n; j++) factor[i * n + j] = (gram[row + (order[j] as number)] as number) / tokens;
      const diagonal = factor[i * n + i] as number;
      factor[i * n + i] = (diagonal === 0 ? 1 : diagonal) + strength * damp;
    }
    if (!inverseFactor(factor, n)) continue;
    latest = { gram, key, factor };
    return factor;
  }
  return undefined;
}
