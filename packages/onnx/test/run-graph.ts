import { Rng } from "@coppice/core";
import { encodeModel, type Graph } from "@coppice/onnx";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { expect } from "vitest";
import type { Matrix } from "./formulas.js";

const rng = Rng.fromSeed(3);

export function random(rows: number, columns: number, scale = 1): Matrix {
  return Array.from({ length: rows }, () => randomRow(columns, scale));
}

export function randomRow(size: number, scale = 1): number[] {
  return Array.from({ length: size }, () => Math.fround(scale * rng.normal()));
}

export function tensor(matrix: Matrix, shape = [matrix.length, matrix[0]?.length ?? 0]): Tensor {
  return new Tensor("float32", Float32Array.from(matrix.flat()), shape);
}

export const vector = (values: readonly number[]) =>
  new Tensor("float32", Float32Array.from(values), [values.length]);
export const int32 = (values: readonly number[], shape = [values.length]) =>
  new Tensor("int32", Int32Array.from(values), shape);
export const int64 = (values: readonly number[], shape = [values.length]) =>
  new Tensor("int64", BigInt64Array.from(values, BigInt), shape);

/** Matrices and vectors as inputs of a graph. */
export function feedsOf(
  weights: Readonly<Record<string, Matrix | readonly number[] | undefined>>,
  suffix = "",
): Record<string, Tensor> {
  return Object.fromEntries(
    Object.entries(weights).flatMap(([name, value]) => {
      if (value === undefined) return [];
      const isVector = typeof value[0] === "number";
      return [[`${name}${suffix}`, isVector ? vector(value as number[]) : tensor(value as Matrix)]];
    }),
  );
}

export async function run(graph: Graph, feeds: Record<string, Tensor>): Promise<Record<string, Tensor>> {
  const session = await InferenceSession.create(encodeModel(graph), {
    intraOpNumThreads: 1,
    logSeverityLevel: 4,
  });
  try {
    return await session.run(feeds);
  } finally {
    await session.release();
  }
}

export function expectClose(found: Tensor | undefined, expected: Matrix, tolerance = 1e-5): void {
  const values = found?.data as Float32Array;
  const flat = expected.flat();
  expect(values).toHaveLength(flat.length);
  let worst = 0;
  for (let i = 0; i < flat.length; i++)
    worst = Math.max(worst, Math.abs((values[i] as number) - (flat[i] as number)));
  expect(worst).toBeLessThan(tolerance);
}
