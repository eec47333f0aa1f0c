import { reference } from "@coppice/backend-reference";
import { type Backend, type ErrorCode, isCoppiceError, Rng } from "@coppice/core";
import { intoMemory, type MemoryModel, randomModel, sampleShapes } from "@coppice/plugin-kit";
import { loadFixture } from "@coppice/plugin-kit/node";
import { expect } from "vitest";

/** One model of every routing order, with groups, biases and corrections among them. */
export const models: Readonly<Record<string, () => Promise<MemoryModel>>> = {
  "softmax-topk": async () => fixture("mixtral"),
  "softmax-topk in groups, behind a dense layer": async () => randomModel(sampleShapes["latent-attention"]),
  "sigmoid-topk in groups, with a correction": async () => randomModel(sampleShapes["low-rank-queries"]),
  "topk-softmax with a bias": async () => fixture("gpt_oss"),
  "topk-sigmoid": async () => fixture("llama4_text"),
  sparsemixer: async () => fixture("phimoe"),
};

async function fixture(name: "mixtral" | "gpt_oss" | "llama4_text" | "phimoe"): Promise<MemoryModel> {
  const { model, weights } = await loadFixture(name);
  return intoMemory(model, weights);
}

export async function backend(): Promise<Backend> {
  return reference.create({}, undefined);
}

export function sequences(vocab: number, lengths: readonly number[], seed = 3): Int32Array[] {
  const rng = Rng.fromSeed(seed);
  return lengths.map((length) => Int32Array.from({ length }, () => rng.integer(vocab)));
}

/** The largest difference, relative to the largest value of all. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  const values = Array.from(expected);
  const most = values.reduce((all, value) => Math.max(all, Math.abs(value)), 1e-30);
  return values.reduce((all, value, i) => Math.max(all, Math.abs((actual[i] as number) - value) / most), 0);
}

export async function expectCode(work: () => unknown, code: ErrorCode, ...parts: string[]): Promise<void> {
  let error: unknown;
  try {
    await work();
  } catch (caught) {
    error = caught;
  }
  if (!isCoppiceError(error)) throw error ?? new Error(`expected ${code}, but nothing was thrown`);
  expect(error.code).toBe(code);
  for (const part of parts) expect(error.message).toContain(part);
}
