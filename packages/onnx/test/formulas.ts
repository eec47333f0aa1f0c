import type { AttentionShape } from "@coppice/onnx";

/** Rows of float64 values. */
export type Matrix = readonly (readonly number[])[];

const at = (values: readonly number[], i: number) => values[i] as number;
const dot = (a: readonly number[], b: readonly number[]) =>
  a.reduce((sum, value, i) => sum + value * at(b, i), 0);

/** `x Wᵀ + b` */
export function product(x: Matrix, weight: Matrix, bias?: readonly number[]): number[][] {
  return x.map((row) => weight.map((out, o) => dot(row, out) + (bias?.[o] ?? 0)));
}

export function normRow(row: readonly number[], weight: readonly number[], epsilon: number): number[] {
  const scale = 1 / Math.sqrt(dot(row, row) / row.length + epsilon);
  return row.map((value, i) => value * scale * at(weight, i));
}

export function normRows(x: Matrix, weight: readonly number[], epsilon: number): number[][] {
  return x.map((row) => normRow(row, weight, epsilon));
}

export function mlp(x: Matrix, { gate, up, down }: { gate: Matrix; up: Matrix; down: Matrix }): number[][] {
  const [gated, linear] = [product(x, gate), product(x, up)];
  const inner = gated.map((row, t) =>
    row.map((value, i) => (value / (1 + Math.exp(-value))) * at(linear[t] as number[], i)),
  );
  return product(inner, down);
}

export interface AttentionWeights {
  readonly attentionNorm: readonly number[];
  readonly qkv: Matrix;
  readonly qkvBias?: readonly number[];
  readonly queryNorm?: readonly number[];
  readonly keyNorm?: readonly number[];
  readonly output: Matrix;
  readonly outputBias?: readonly number[];
  readonly feedForwardNorm: readonly number[];
}

/** Attention written down from its definition, token by token, with a rotary base of 100. */
export function slowAttention(
  shape: AttentionShape,
  weights: AttentionWeights,
  hidden: Matrix,
  lengths: readonly number[],
): { residual: number[][]; normed: number[][] } {
  const { heads, kvHeads, headDim, scale, window = Number.POSITIVE_INFINITY } = shape;
  const normed = normRows(hidden, weights.attentionNorm, shape.attentionEpsilon);
  const projected = product(normed, weights.qkv, weights.qkvBias);
  const positions = lengths.flatMap((length) => Array.from({ length }, (_, i) => i));
  const head = (token: number, index: number) =>
    (projected[token] as number[]).slice(index * headDim, (index + 1) * headDim);
  const query = (token: number, h: number) =>
    rotate(perhaps(head(token, h), weights.queryNorm, shape.queryEpsilon), token);
  const key = (token: number, h: number) =>
    rotate(perhaps(head(token, heads + h), weights.keyNorm, shape.keyEpsilon), token);
  const value = (token: number, h: number) => head(token, heads + kvHeads + h);

  const mixed = positions.map((position, token) =>
    Array.from({ length: heads }, (_, h) => {
      const group = Math.floor(h / (heads / kvHeads));
      const seen = Array.from({ length: position + 1 }, (_, i) => token - position + i).filter(
        (other) => token - other < window,
      );
      const scores = seen.map((other) => Math.exp(scale * dot(query(token, h), key(other, group))));
      const sum = scores.reduce((a, b) => a + b, 0);
      return Array.from({ length: headDim }, (_, i) =>
        seen.reduce((total, other, s) => total + (at(scores, s) / sum) * at(value(other, group), i), 0),
      );
    }).flat(),
  );
  const residual = product(mixed, weights.output, weights.outputBias).map((row, t) =>
    row.map((entry, i) => entry + at(hidden[t] as number[], i)),
  );
  return { residual, normed: normRows(residual, weights.feedForwardNorm, shape.feedForwardEpsilon) };

  function perhaps(
    row: number[],
    weight: readonly number[] | undefined,
    epsilon: number | undefined,
  ): number[] {
    return weight && epsilon ? normRow(row, weight, epsilon) : row;
  }

  function rotate(row: number[], token: number): number[] {
    const half = shape.rotaryDimensions / 2;
    const turned = [...row];
    for (let i = 0; i < half; i++) {
      const angle = at(positions, token) * 100 ** (-i / half);
      turned[i] = at(row, i) * Math.cos(angle) - at(row, i + half) * Math.sin(angle);
      turned[i + half] = at(row, i + half) * Math.cos(angle) + at(row, i) * Math.sin(angle);
    }
    return turned;
  }
}
