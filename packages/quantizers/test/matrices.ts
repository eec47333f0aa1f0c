import { type InputSums, type QuantizedFormat, type QuantizeRequest, Rng } from "@coppice/core";

/** A request for random weights with a few large values, as trained matrices have them. */
export function request(
  rows: number,
  columns: number,
  format: Partial<QuantizedFormat> = {},
  seed = 1,
): QuantizeRequest {
  const rng = Rng.fromSeed(seed);
  const weights = Float32Array.from(
    { length: rows * columns },
    () => rng.normal() * (rng.bernoulli(0.02) ? 0.2 : 0.03),
  );
  const full = { bits: 4, groupSize: 32, symmetric: true, ...format } as const;
  return { name: "w", weights, rows, columns, format: full, scales: "F32" };
}

/** Inputs x = M z with some strong channels, [tokens, columns]. */
export function inputRows(tokens: number, columns: number, seed = 2): number[][] {
  const rng = Rng.fromSeed(seed);
  const gains = Array.from({ length: columns }, () => Math.exp(1.2 * rng.normal()));
  const mix = Array.from({ length: columns }, () => Array.from({ length: 6 }, () => rng.normal()));
  return Array.from({ length: tokens }, () => {
    const common = Array.from({ length: 6 }, () => rng.normal());
    return gains.map(
      (gain, i) => gain * (rng.normal() + mix[i]!.reduce((sum, m, j) => sum + m * common[j]!, 0)),
    );
  });
}

/** Sums over rows by their definition. */
export function sumsOf(inputs: readonly (readonly number[])[]): InputSums {
  const columns = inputs[0]!.length;
  const gram = new Float64Array(columns * columns);
  const magnitude = new Float64Array(columns);
  for (const x of inputs) {
    for (let i = 0; i < columns; i++) {
      magnitude[i] = magnitude[i]! + Math.abs(x[i]!);
      for (let j = 0; j < columns; j++) gram[i * columns + j] = gram[i * columns + j]! + x[i]! * x[j]!;
    }
  }
  return { tokens: inputs.length, gram, magnitude };
}

/** Sum over inputs of ‖(A - B) x‖². */
export function outputError(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
  inputs: readonly (readonly number[])[],
): number {
  const columns = inputs[0]!.length;
  let sum = 0;
  for (let row = 0; row < a.length / columns; row++) {
    for (const x of inputs) {
      let y = 0;
      for (let i = 0; i < columns; i++) y += (a[row * columns + i]! - b[row * columns + i]!) * x[i]!;
      sum += y * y;
    }
  }
  return sum;
}

export const formats: readonly Partial<QuantizedFormat>[] = [
  { bits: 2, groupSize: 16 },
  { bits: 2, groupSize: 64, symmetric: false },
  { bits: 4, groupSize: 32 },
  { bits: 4, groupSize: 32, symmetric: false },
  { bits: 8, groupSize: 64 },
  { bits: 8, groupSize: 16, symmetric: false },
];
