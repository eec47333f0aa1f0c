import { reference } from "@coppice/backend-reference";
import { type CollectedStatistics, collectStatistics } from "@coppice/calibrate";
import { createRegistry, Rng, type Runner, type SampleField } from "@coppice/core";
import type { MemoryModel } from "@coppice/plugin-kit";

export async function load({ model, weights }: MemoryModel): Promise<Runner> {
  const backend = await createRegistry([reference]).create("backend", "reference", {}, undefined);
  return backend.load({ model, weights });
}

export function sequences(count: number, length: number, seed: number, vocab: number): Int32Array[] {
  const rng = Rng.fromSeed(seed);
  return Array.from({ length: count }, () =>
    Int32Array.from({ length }, () => Math.floor(rng.uniform() * vocab)),
  );
}

/** Statistics with every token in their sample. */
export async function sampled(
  source: MemoryModel,
  data: readonly Int32Array[],
  fields: readonly SampleField[] = ["logits", "inputs", "grams"],
): Promise<CollectedStatistics> {
  await using runner = await load(source);
  return await collectStatistics({
    runner,
    sequences: data,
    name: "test",
    sample: { limit: 4096, with: fields },
  });
}
