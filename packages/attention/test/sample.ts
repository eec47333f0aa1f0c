import { reference } from "@coppice/backend-reference";
import { createRegistry, type MoeModel, Rng, type Runner } from "@coppice/core";
import type { MemoryModel } from "@coppice/plugin-kit";

export async function load({ model, weights }: Pick<MemoryModel, "model" | "weights">): Promise<Runner> {
  const backend = await createRegistry([reference]).create("backend", "reference", {}, undefined);
  return backend.load({ model, weights });
}

export function randomTokens({ vocabSize }: MoeModel, length: number, seed: number): Int32Array {
  const rng = Rng.fromSeed(seed);
  return Int32Array.from({ length }, () => rng.integer(vocabSize));
}
