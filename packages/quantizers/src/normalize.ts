import type { NormSpec, WeightReader } from "@coppice/core";

/** A norm of the model over rows of hidden states; see `NormSpec`. */
export async function readNorm(
  { kind, weight, bias, epsilon }: NormSpec,
  weights: WeightReader,
): Promise<(rows: Float32Array, size: number) => Float32Array> {
  const gain = weight && (await weights.read(weight));
  const shift = bias && (await weights.read(bias));
  return (rows, size) => {
    const out = new Float32Array(rows.length);
    for (let at = 0; at < rows.length; at += size) {
      let mean = 0;
      if (kind === "layer") for (let i = 0; i < size; i++) mean += (rows[at + i] as number) / size;
      let square = 0;
      for (let i = 0; i < size; i++) square += ((rows[at + i] as number) - mean) ** 2;
      const factor = 1 / Math.sqrt(square / size + epsilon);
      for (let i = 0; i < size; i++) {
        const value = ((rows[at + i] as number) - mean) * factor;
        out[at + i] = value * (gain ? (gain[i] as number) : 1) + (shift ? (shift[i] as number) : 0);
      }
    }
    return out;
  };
}
