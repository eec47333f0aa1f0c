import type {
  DecoderLayer,
  InputSums,
  LinearSpec,
  NormSpec,
  QuantizeRequest,
  Quantizer,
  TensorRef,
} from "@coppice/core";
import { divideRows, type EditedWeights, scaleColumns } from "./edited-weights.js";
import type { FormattedMatrix } from "./format-rules.js";
import { scaleDtype } from "./matrix-work.js";

/** What scales are folded into. */
export interface FoldTarget {
  readonly quantizer: Quantizer;
  readonly weights: EditedWeights;
  /** Matrices that are quantized, by the name of their tensor. */
  readonly formatted: ReadonlyMap<string, FormattedMatrix>;
  readonly signal?: AbortSignal;
}

/** An activation, what makes it and what reads it. */
interface Foldable {
  readonly name: string;
  /** Matrices and vectors of which the rows are divided. */
  readonly makers: readonly TensorRef[];
  /** Everything that reads it, routers included: columns are multiplied. */
  readonly readers: readonly TensorRef[];
  readonly inputs: InputSums;
  readonly tied?: Int32Array;
}

/** Output rows of all readers together that a quantizer sees: enough to compare scales by. */
const mostRows = 1024;
const leastRowsEach = 16;

/**
 * Asks the quantizer for scales of an activation and folds them into the weights.
 * @returns the factors by which what is read is divided from now on; undefined when nothing changed
 */
async function fold(
  { quantizer, weights, formatted, signal }: FoldTarget,
  { name, makers, readers, inputs, tied }: Foldable,
): Promise<Float64Array | undefined> {
  const own = readers.flatMap((ref) => formatted.get(ref.name) ?? []);
  if (!quantizer.scaleInputs || own.length === 0) return undefined;
  const each = Math.max(leastRowsEach, Math.floor(mostRows / own.length));
  const requests: QuantizeRequest[] = [];
  for (const matrix of own) requests.push(await sampledRows(matrix, weights, each));
  const factors = await quantizer.scaleInputs({
    name,
    columns: inputs.magnitude.length,
    readers: requests,
    inputs,
    ...(tied && { tied }),
    ...(signal && { signal }),
  });
  if (!factors) return undefined;
  for (const ref of makers) weights.edit(ref, divideRows(factors));
  for (const ref of readers) weights.edit(ref, scaleColumns(factors));
  return factors;
}

/** Rows of a matrix, evenly chosen when it has more than `most`. */
async function sampledRows(
  matrix: FormattedMatrix,
  weights: EditedWeights,
  most: number,
): Promise<QuantizeRequest> {
  const values = await weights.read(matrix.weight);
  const [all, columns] = matrix.weight.shape as [number, number];
  const rows = Math.min(all, most);
  const sample = new Float32Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    const row = Math.floor((i * all) / rows);
    sample.set(values.subarray(row * columns, (row + 1) * columns), i * columns);
  }
  const { module, format } = matrix;
  return { name: module, weights: sample, rows, columns, format, scales: scaleDtype(matrix, undefined) };
}

/** The norm before attention and what reads it. */
export async function foldAttentionNorm(
  target: FoldTarget,
  { attention, attentionNorm, index }: DecoderLayer,
  inputs: InputSums,
): Promise<Float64Array | undefined> {
  const makers = normMakers(attentionNorm);
  if (attention.kind === "other" || !makers) return undefined;
  const linears: LinearSpec[] =
    attention.kind === "gqa"
      ? [attention.query, attention.key, attention.value]
      : [attention.queryDown ?? attention.query, attention.kvDown];
  const readers = linears.map(({ weight }) => weight);
  return fold(target, { name: `input of attention in layer ${index}`, makers, readers, inputs });
}

/** The norm before the experts and what reads it: gate and up of all experts, shared ones, and the router. */
export async function foldExpertNorm(
  target: FoldTarget,
  { feedForward, feedForwardNorm, index }: DecoderLayer,
  inputs: InputSums,
): Promise<Float64Array | undefined> {
  const makers = normMakers(feedForwardNorm);
  if (feedForward.kind !== "moe" || !makers) return undefined;
  const { experts, shared, sharedGate, router } = feedForward;
  // Which tokens skip no expert follows from the magnitudes of these inputs.
  if (router.skip?.spare) return undefined;
  const mlps = shared ? [...experts, shared] : experts;
  const readers = [
    router.weight,
    ...(sharedGate ? [sharedGate] : []),
    ...mlps.flatMap(({ gate, up }) => (gate ? [gate, up] : [up])),
  ];
  return fold(target, { name: `input of experts in layer ${index}`, makers, readers, inputs });
}

/**
 * The values of attention and its output projection: a channel of a value is read once for every query head of its group,
 * so these get one factor.
 */
export async function foldValues(
  target: FoldTarget,
  { attention, index }: DecoderLayer,
  inputs: InputSums,
): Promise<Float64Array | undefined> {
  // A clip does not go with scales, and latent values come from a matrix that keys share.
  if (attention.kind !== "gqa" || attention.clip !== undefined) return undefined;
  const { heads, kvHeads, headDim, value, output } = attention;
  const group = heads / kvHeads;
  const channelOf = (i: number) => Math.floor(i / headDim / group) * headDim + (i % headDim);
  const tied = Int32Array.from({ length: heads * headDim }, (_, i) => channelOf(i));
  const name = `values of attention in layer ${index}`;
  const factors = await fold(target, { name, makers: [], readers: [output.weight], inputs, tied });
  if (!factors) return undefined;
  const own = new Float64Array(kvHeads * headDim);
  factors.forEach((factor, i) => {
    own[channelOf(i)] = factor;
  });
  target.weights.edit(value.weight, divideRows(own));
  if (value.bias) target.weights.edit(value.bias, divideRows(own));
  return factors;
}

/** The hidden units of an expert: up is a factor of each, gate is not. */
export async function foldUnits(
  target: FoldTarget,
  { feedForward, index }: DecoderLayer,
  expert: number,
  inputs: InputSums,
): Promise<Float64Array | undefined> {
  const mlp = feedForward.kind === "moe" ? feedForward.experts[expert] : undefined;
  if (mlp?.activation.kind !== "silu") return undefined;
  const makers = mlp.upBias ? [mlp.up, mlp.upBias] : [mlp.up];
  return fold(target, {
    name: `units of expert ${expert} in layer ${index}`,
    makers,
    readers: [mlp.down],
    inputs,
  });
}

/** What a norm's outputs are made by; undefined where it has no weight to fold into. */
function normMakers({ weight, bias }: NormSpec): TensorRef[] | undefined {
  if (!weight) return undefined;
  return bias ? [weight, bias] : [weight];
}
