import type { GroupedQueryAttentionSpec, NormSpec, WeightReader } from "@coppice/core";

/** The weights of one layer that a profile needs besides queries and keys, which the backend shows. */
export interface ProfileWeights {
  /** [kvHeads * headDim, hidden] */
  readonly value: Float32Array;
  readonly valueBias: Float32Array | undefined;
  /** [hidden, heads * headDim] */
  readonly output: Float32Array;
  readonly norm: Float32Array | undefined;
  readonly normBias: Float32Array | undefined;
  readonly sinkLogits: Float32Array | undefined;
}

export async function readProfileWeights(
  { value, output, sinks }: GroupedQueryAttentionSpec,
  norm: NormSpec,
  weights: WeightReader,
): Promise<ProfileWeights> {
  const read = async (ref: Parameters<WeightReader["read"]>[0] | undefined) =>
    ref && (await weights.read(ref));
  return {
    value: await weights.read(value.weight),
    valueBias: await read(value.bias),
    output: await weights.read(output.weight),
    norm: await read(norm.weight),
    normBias: await read(norm.bias),
    sinkLogits: await read(sinks),
  };
}

/**
 * Values of all KV heads of a layer, v = W_V norm(x) + b, limited to ±clip where the family does.
 * @param hidden [tokens, hidden], the layer's input
 * @returns [kvHeads][tokens, headDim]
 */
export function layerValues(
  hidden: Float32Array,
  size: number,
  { kvHeads, headDim, clip }: GroupedQueryAttentionSpec,
  norm: NormSpec,
  weights: ProfileWeights,
): Float32Array[] {
  const tokens = hidden.length / size;
  const values = Array.from({ length: kvHeads }, () => new Float32Array(tokens * headDim));
  const x = new Float64Array(size);
  const { value, valueBias } = weights;
  for (let t = 0; t < tokens; t++) {
    normalized(hidden.subarray(t * size, (t + 1) * size), norm, weights, x);
    for (let row = 0; row < kvHeads * headDim; row++) {
      let [a, b] = [valueBias?.[row] ?? 0, 0];
      let i = 0;
      for (const at = row * size; i + 2 <= size; i += 2) {
        a += (value[at + i] as number) * (x[i] as number);
        b += (value[at + i + 1] as number) * (x[i + 1] as number);
      }
      for (; i < size; i++) a += (value[row * size + i] as number) * (x[i] as number);
      const sum = clip === undefined ? a + b : Math.max(-clip, Math.min(clip, a + b));
      (values[Math.floor(row / headDim)] as Float32Array)[t * headDim + (row % headDim)] = sum;
    }
  }
  return values;
}

function normalized(
  x: Float32Array,
  { kind, epsilon }: NormSpec,
  { norm, normBias }: ProfileWeights,
  y: Float64Array,
): void {
  let mean = 0;
  if (kind === "layer") {
    for (const value of x) mean += value;
    mean /= x.length;
  }
  let square = 0;
  for (const value of x) square += (value - mean) ** 2;
  const factor = 1 / Math.sqrt(square / x.length + epsilon);
  for (let i = 0; i < x.length; i++)
    y[i] = ((x[i] as number) - mean) * factor * (norm?.[i] ?? 1) + (normBias?.[i] ?? 0);
}

/** W_Oᵀ W_O of the columns `from` to `from + width` of the output projection, [width, width]. */
export function outputGram(output: Float32Array, columns: number, from: number, width: number): Float64Array {
  const gram = new Float64Array(width * width);
  for (let row = from; row < output.length; row += columns) {
    for (let i = 0; i < width; i++) {
      const a = output[row + i] as number;
      for (let j = 0, at = i * width; j <= i; j++)
        gram[at + j] = (gram[at + j] as number) + a * (output[row + j] as number);
    }
  }
  for (let i = 0; i < width; i++)
    for (let j = 0; j < i; j++) gram[j * width + i] = gram[i * width + j] as number;
  return gram;
}
