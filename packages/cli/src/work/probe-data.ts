import type { MoeModel } from "@coppice/core";
import { encodeTask, loadTokenizer, type Task } from "@coppice/evaluate";
import type { OpenModel } from "./open-model.js";

/** Tokens that are run for every measurement, unless the first sample alone is longer. */
const probeTokens = 4096;
/** Logits that are held at once: 64 MB. */
const probeValues = 16 * 1024 * 1024;

/** Sequences and the positions in them at which predictions are compared. */
export interface ProbeData {
  readonly sequences: readonly Int32Array[];
  readonly positions: readonly Int32Array[];
}

/**
 * Samples of a task at equal distances, as many as make some thousand tokens, with the positions of their answers; of texts all
 * positions. Where logits of so many would be large, some of the positions at equal distances.
 */
export async function probeData(
  task: Task,
  { checkpoint }: OpenModel,
  limit: number | undefined,
): Promise<ProbeData> {
  const { model, folder } = checkpoint;
  const tokenizer = await loadTokenizer(folder);
  const encoded = await encodeTask(task, { tokenizer, model, ...(limit !== undefined && { limit }) });
  const all = encoded.samples.flatMap(({ sequences }) => sequences);
  const tokens = all.reduce((sum, { ids }) => sum + ids.length, 0);
  const chosen = spread(all, Math.floor((all.length * probeTokens) / tokens));
  return {
    sequences: chosen.map(({ ids }) => ids),
    positions: thinned(
      chosen.map(({ positions }) => Int32Array.from(new Set(positions))),
      model,
    ),
  };
}

/** So many items at equal distances, at least one. */
function spread<T>(items: readonly T[], count: number): T[] {
  const wanted = Math.max(1, Math.min(items.length, count));
  return Array.from({ length: wanted }, (_, i) => items[Math.floor((i * items.length) / wanted)] as T);
}

function thinned(positions: readonly Int32Array[], { vocabSize }: MoeModel): Int32Array[] {
  const total = positions.reduce((sum, { length }) => sum + length, 0);
  const step = Math.ceil((total * vocabSize) / probeValues);
  let i = 0;
  return positions.map((some) => some.filter(() => i++ % step === 0));
}
