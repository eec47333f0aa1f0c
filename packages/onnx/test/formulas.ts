import type { ActivationSpec } from "@coppice/core";
import type { AttentionShape, GroupedQueryShape, LatentShape, MlpEntries, NormShape } from "@coppice/onnx";

/** Rows of float64 values. */
export type Matrix = readonly (readonly number[])[];
type Row = readonly number[];

/** Weights of a graph by the names of its inputs. */
export type Weights = Readonly<Record<string, Matrix | Row | undefined>>;

export const at = (values: Row, i: number) => values[i] as number;
const dot = (a: Row, b: Row) => a.reduce((sum, value, i) => sum + value * at(b, i), 0);

/** `x Wᵀ + b` */
export function product(x: Matrix, weight: Matrix, bias?: Row): number[][] {
  return x.map((row) => weight.map((out, o) => dot(row, out) + (bias?.[o] ?? 0)));
}

export function normRow(row: Row, { kind, epsilon }: NormShape, weight: Row, bias?: Row): number[] {
  const mean = kind === "layer" ? row.reduce((a, b) => a + b, 0) / row.length : 0;
  const centred = row.map((value) => value - mean);
  const scale = 1 / Math.sqrt(dot(centred, centred) / row.length + epsilon);
  return centred.map((value, i) => value * scale * at(weight, i) + (bias?.[i] ?? 0));
}

export function activated(kind: ActivationSpec, gate: number, up: number): number {
  switch (kind.kind) {
    case "silu":
      return (gate / (1 + Math.exp(-gate))) * up;
    case "clamped-swiglu": {
      const low = Math.min(gate, kind.limit);
      const limited = Math.max(-kind.limit, Math.min(kind.limit, up));
      return ((limited + 1) * low) / (1 + Math.exp(-kind.alpha * low));
    }
    case "relu2":
      return Math.max(0, up) ** 2;
  }
}

export type MlpMatrices = MlpEntries<Matrix | Row>;

export function slowMlp(x: Matrix, activation: ActivationSpec, weights: MlpMatrices): number[][] {
  return slowLinear(slowUnits(x, activation, weights), weights, "down");
}

/** What `down` multiplies. */
export function slowUnits(x: Matrix, activation: ActivationSpec, weights: MlpMatrices): number[][] {
  const up = slowLinear(x, weights, "up");
  const gate = weights.gate ? slowLinear(x, weights, "gate") : up;
  return up.map((row, t) => row.map((value, i) => activated(activation, at(gate[t] as Row, i), value)));
}

function slowLinear(rows: Matrix, weights: MlpMatrices, part: "gate" | "up" | "down"): number[][] {
  return product(rows, weights[part] as Matrix, weights[`${part}Bias`] as Row | undefined);
}

/** What attention sees of its surroundings. */
export interface Circumstances {
  /** Tokens of every sequence, none of them in a cache. */
  readonly lengths: readonly number[];
  /** Factor of the query at each position. */
  readonly temperature: (position: number) => number;
  /** Positions of one chunk. */
  readonly chunk: number;
}

/** Attention written down from its definition, token by token, with a rotary base of 100. */
export function slowAttention(
  shape: AttentionShape,
  weights: Weights,
  hidden: Matrix,
  { lengths, temperature, chunk }: Circumstances,
): { residual: number[][]; normed: number[][]; received: number[] } {
  const { heads, scale, window = Number.POSITIVE_INFINITY } = shape;
  const vector = (name: string) => weights[name] as Row;
  const norm = (rows: Matrix, name: string, norm: NormShape) =>
    rows.map((row) => normRow(row, norm, vector(name), vector(`${name}Bias`)));
  const positions = lengths.flatMap((length) => Array.from({ length }, (_, i) => i));
  const normed = norm(hidden, "attentionNorm", shape.attentionNorm);
  const { queries, keys, values } =
    shape.kind === "gqa"
      ? slowGrouped(shape, weights, normed, positions, temperature)
      : slowLatent(shape, weights, normed, positions);
  const sinks = weights.sinks as Row | undefined;
  const received = positions.map(() => 0);
  const mixed = positions.map((position, token) =>
    Array.from({ length: heads }, (_, h) => {
      const group = Math.floor((h * (keys[token] as Matrix).length) / heads);
      const seen = Array.from({ length: position + 1 }, (_, i) => token - position + i).filter(
        (other) =>
          token - other < window && Math.floor(at(positions, other) / chunk) === Math.floor(position / chunk),
      );
      const score = (other: number) => dot(queries[token]?.[h] as Row, keys[other]?.[group] as Row);
      const shares = seen.map((other) => Math.exp(scale * score(other)));
      const sum = shares.reduce((a, b) => a + b, sinks ? Math.exp(at(sinks, h)) : 0);
      for (const [s, other] of seen.entries()) {
        received[other] = at(received, other) + at(shares, s) / sum;
      }
      const value = (other: number) => (values[other] as Matrix)[group] as Row;
      return value(token).map((_, i) =>
        seen.reduce((total, other, s) => total + (at(shares, s) / sum) * at(value(other), i), 0),
      );
    }).flat(),
  );
  const attended = product(mixed, weights.output as Matrix, vector("outputBias"));
  const residual = attended.map((row, t) => row.map((entry, i) => entry + at(hidden[t] as Row, i)));
  return { residual, received, normed: norm(residual, "feedForwardNorm", shape.feedForwardNorm) };
}

/** [tokens][heads][size] */
interface Heads {
  readonly queries: Matrix[];
  readonly keys: Matrix[];
  readonly values: Matrix[];
}

function slowGrouped(
  shape: GroupedQueryShape,
  weights: Weights,
  normed: Matrix,
  positions: Row,
  temperature: (position: number) => number,
): Heads {
  const { heads, kvHeads, headDim, clip = Number.POSITIVE_INFINITY, rotaryDimensions } = shape;
  const limited = (row: Row) => row.map((value) => Math.max(-clip, Math.min(clip, value)));
  const turned = (row: Row, t: number) =>
    cut(row, headDim).flatMap((head) => rotated(head, rotaryDimensions, at(positions, t)));
  const projected = product(normed, weights.qkv as Matrix, weights.qkvBias as Row | undefined);
  const prepared = (name: "query" | "key", from: number, count: number) =>
    projected.map((all, t) => {
      const row = all.slice(from * headDim, (from + count) * headDim);
      const spec = shape[`${name}Norm`];
      const normalize = (values: Row) => {
        if (!spec) return values;
        const size = spec.over === "head" ? headDim : values.length;
        const [weight, bias] = [weights[`${name}Norm`] as Row, weights[`${name}NormBias`] as Row | undefined];
        return cut(values, size).flatMap((part) => normRow(part, spec, weight, bias));
      };
      const done = shape.normAfterRotary
        ? normalize(turned(limited(row), t))
        : turned(limited(normalize(row)), t);
      const factor = name === "query" && shape.temperature ? temperature(at(positions, t)) : 1;
      return cut(
        done.map((value) => factor * value),
        headDim,
      );
    });
  return {
    queries: prepared("query", 0, heads),
    keys: prepared("key", heads, kvHeads),
    values: projected.map((all) => cut(limited(all.slice((heads + kvHeads) * headDim)), headDim)),
  };
}

function slowLatent(shape: LatentShape, weights: Weights, normed: Matrix, positions: Row): Heads {
  const { nopeDim, rotaryDimensions: turning, valueDim, rank } = shape;
  const linear = (x: Matrix, name: string) =>
    product(x, weights[name] as Matrix, weights[`${name}Bias`] as Row | undefined);
  let source: Matrix = shape.queryDown ? linear(normed, "queryDown") : normed;
  const { queryNorm } = shape;
  if (queryNorm) source = source.map((row) => normRow(row, queryNorm, weights.queryNorm as Row));
  const down = linear(normed, "kvDown");
  const latents = down.map((row) => normRow(row.slice(0, rank), shape.kvNorm, weights.kvNorm as Row));
  const up = linear(latents, "kvUp").map((row) => cut(row, nopeDim + valueDim));
  return {
    queries: linear(source, "query").map((row, t) =>
      cut(row, nopeDim + turning).map((head) => [
        ...head.slice(0, nopeDim),
        ...rotated(head.slice(nopeDim), turning, at(positions, t)),
      ]),
    ),
    keys: up.map((heads, t) => {
      const shared = rotated((down[t] as Row).slice(rank), turning, at(positions, t));
      return heads.map((head) => [...head.slice(0, nopeDim), ...shared]);
    }),
    values: up.map((heads) => heads.map((head) => head.slice(nopeDim))),
  };
}

function rotated(row: Row, dimensions: number, position: number): number[] {
  const half = dimensions / 2;
  const turned = [...row];
  for (let i = 0; i < half; i++) {
    const angle = position * 100 ** (-i / half);
    turned[i] = at(row, i) * Math.cos(angle) - at(row, i + half) * Math.sin(angle);
    turned[i + half] = at(row, i + half) * Math.cos(angle) + at(row, i) * Math.sin(angle);
  }
  return turned;
}

function cut(row: Row, size: number): number[][] {
  return Array.from({ length: row.length / size }, (_, i) => row.slice(i * size, (i + 1) * size));
}
