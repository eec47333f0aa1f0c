import {
  definePlugin,
  dequantizeMatrix,
  type InputSums,
  type QuantizedResult,
  type QuantizeRequest,
  type Quantizer,
  type ScaleInputsRequest,
  throwIfAborted,
} from "@coppice/core";
import * as v from "valibot";
import { fitGrid } from "./fit-grid.js";
import { fallback, spreadErrors, thinInputs } from "./gptq.js";
import { packMatrix, roundToGrid } from "./grid.js";
import { roundToNearest } from "./rtn.js";

/** Options of the plugin `awq`. */
export interface AwqOptions {
  /** Exponents that are tried, from 0 in equal steps below 1; default 20. */
  readonly steps?: number;
  /** How scaled weights are rounded: to nearest, with ranges clipped by inputs, or as GPTQ does; default `nearest`. */
  readonly rounding?: "nearest" | "gptq";
  /** Matrices and activations with fewer inputs than this are neither scaled nor clipped by them; default 128. */
  readonly leastTokens?: number;
}

declare module "@coppice/core" {
  interface QuantizerPlugins {
    awq: AwqOptions;
  }
}

/**
 * AWQ (arXiv 2306.00978; mit-han-lab/llm-awq): channels of large inputs are multiplied by a factor before they are
 * rounded, s = m^r / sqrt(max(m^r) min(m^r)) with m the mean magnitudes of the inputs, for the r with the least output
 * error. The factors are folded into the norm or the matrix before, and into everything else that reads it.
 *
 * Differences: errors are those of the linear outputs, from gram matrices, where the authors' code runs whole blocks; the
 * clip minimises squared errors weighted by mean squared inputs, where it compares outputs of sampled tokens.
 */
export const awq = definePlugin({
  kind: "quantizer",
  name: "awq",
  contract: 1,
  summary:
    "Scales channels by the size of their inputs before rounding, and folds the scales into norms (AWQ).",
  reference: "https://arxiv.org/abs/2306.00978",
  options: v.strictObject({
    steps: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(2), v.maxValue(1000)), 20),
    rounding: v.exactOptional(v.picklist(["nearest", "gptq"]), "nearest"),
    leastTokens: v.exactOptional(v.pipe(v.number(), v.safeInteger(), v.minValue(1)), 128),
  }),
  create: (options): Quantizer => ({
    needs: { inputs: true },
    quantize: async (request) => roundScaled(request, options),
    scaleInputs: async (request) =>
      request.inputs.tokens < options.leastTokens ? undefined : bestScales(request, options.steps),
  }),
});

function roundScaled(
  request: QuantizeRequest,
  { rounding, leastTokens }: Required<AwqOptions>,
): QuantizedResult {
  const { inputs, weights, columns } = request;
  const why = thinInputs(inputs, leastTokens);
  if (!inputs || why !== undefined) return fallback(request, why as string);
  if (rounding === "gptq") return spreadErrors(request, inputs, { damp: 0.01, actOrder: true });
  const squares = Float64Array.from({ length: columns }, (_, i) => inputs.gram[i * columns + i] as number);
  // Some weight for all, so that columns without inputs get a grid that fits them.
  const floor = 0.01 * (squares.reduce((sum, value) => sum + value, 0) / columns);
  const grid = fitGrid(request, { clip: true, importance: squares.map((value) => value + floor) });
  return { matrix: packMatrix(roundToGrid(weights, request, grid), request, grid) };
}

function bestScales(request: ScaleInputsRequest, steps: number): Float64Array | undefined {
  const { readers, inputs, signal, name } = request;
  const magnitude = meanMagnitudes(request);
  let best: Float64Array | undefined;
  let least = Number.POSITIVE_INFINITY;
  for (let step = 0; step < steps; step++) {
    throwIfAborted(signal, `scaling ${name}`);
    const factors = scalesOf(magnitude, step / steps);
    let error = 0;
    for (const reader of readers) error += outputError(reader, factors, inputs);
    if (error >= least) continue;
    least = error;
    best = step === 0 ? undefined : factors;
  }
  return best;
}

/** [columns], of tied channels together, kept from 0. */
function meanMagnitudes({ inputs: { magnitude, tokens }, columns, tied }: ScaleInputsRequest): Float64Array {
  const sums = new Map<number, { sum: number; count: number }>();
  const numberOf = (i: number) => (tied ? (tied[i] as number) : i);
  for (let i = 0; i < columns; i++) {
    const { sum, count } = sums.get(numberOf(i)) ?? { sum: 0, count: 0 };
    sums.set(numberOf(i), { sum: sum + (magnitude[i] as number) / tokens, count: count + 1 });
  }
  return Float64Array.from({ length: columns }, (_, i) => {
    const { sum, count } = sums.get(numberOf(i)) as { sum: number; count: number };
    return Math.max(sum / count, leastMagnitude);
  });
}

/** Keeps factors of channels without inputs from 0. */
const leastMagnitude = 1e-4;

function scalesOf(magnitude: Float64Array, exponent: number): Float64Array {
  const powers = magnitude.map((value) => value ** exponent);
  const middle = Math.sqrt(powers.reduce((a, b) => Math.max(a, b)) * powers.reduce((a, b) => Math.min(a, b)));
  return powers.map((value) => value / middle);
}

/** Sum over inputs of ‖(Ŵ - W) x‖², where Ŵ is W, scaled, rounded to nearest and scaled back. */
function outputError(
  reader: Omit<QuantizeRequest, "signal">,
  factors: Float64Array,
  { gram }: InputSums,
): number {
  const { weights, rows, columns } = reader;
  const scaled = weights.map((weight, i) => weight * (factors[i % columns] as number));
  const found = dequantizeMatrix(roundToNearest({ ...reader, weights: scaled }, false));
  const difference = new Float64Array(columns);
  let error = 0;
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < columns; i++) {
      const at = row * columns + i;
      difference[i] = (found[at] as number) / (factors[i] as number) - (weights[at] as number);
    }
    for (let i = 0; i < columns; i++) {
      const own = difference[i] as number;
      // The gram matrix is symmetric: half of it is enough.
      let sum = 0.5 * own * (gram[i * columns + i] as number);
      for (let j = i + 1; j < columns; j++)
        sum += (difference[j] as number) * (gram[i * columns + j] as number);
      error += 2 * own * sum;
    }
  }
  return error;
}
