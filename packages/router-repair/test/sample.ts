import { reference } from "@coppice/backend-reference";
import { type CollectedStatistics, collectStatistics } from "@coppice/calibrate";
import { createRegistry, Rng } from "@coppice/core";
import type { MemoryModel } from "@coppice/plugin-kit";

/** Random sequences that the vocabulary of random models has. */
export function sequences(count: number, length: number, seed: number, vocab = 29): Int32Array[] {
  const rng = Rng.fromSeed(seed);
  return Array.from({ length: count }, () =>
    Int32Array.from({ length }, () => Math.floor(rng.uniform() * vocab)),
  );
}

/** Statistics with everything that router repair needs of every token. */
export async function sampled(
  { model, weights }: MemoryModel,
  data: readonly Int32Array[],
): Promise<CollectedStatistics> {
  const backend = await createRegistry([reference]).create("backend", "reference", {}, undefined);
  await using runner = await backend.load({ model, weights });
  return await collectStatistics({
    runner,
    sequences: data,
    name: "test",
    sample: { limit: 4096, with: ["logits", "inputs", "grams"] },
  });
}
