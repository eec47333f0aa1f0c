import { type RunEmitter, type Runner, startProgress, throwIfAborted } from "@coppice/core";
import type { CollectedStatistics } from "./collected-statistics.js";
import { Collection, type CollectionOptions } from "./collection.js";
import { type CollectedPart, PartSum } from "./part-sum.js";

export interface CollectOptions extends CollectionOptions {
  /** A runner of the model, without anything running on it. */
  readonly runner: Runner;
  /** Gets `progress` in tokens after every run. */
  readonly emitter?: RunEmitter;
}

/**
 * One pass over the data: what every router chose and every chosen expert put out, summed in float64. The gate
 * weights are those that really multiply the expert outputs, whatever the family's routing; where they multiply inputs
 * instead (Llama-4), see `LayerStatistics`.
 * @throws COPPICE_TASK_EMPTY, COPPICE_TASK_TOO_LONG, COPPICE_USAGE, COPPICE_ABORTED; COPPICE_BACKEND_FAILED naming the
 * layer and the expert when an activation is NaN or infinite; those of `Runner.run`
 */
export async function collectStatistics(options: CollectOptions): Promise<CollectedStatistics> {
  const sum = new PartSum();
  for await (const part of collectParts(options)) sum.add(part);
  return sum.result();
}

/**
 * Statistics of the parts (`CollectionOptions.parts`) whose number is `share.index` modulo `share.count`, one after the
 * other, for several runners that share the data; `PartSum` adds them up.
 * @param share default: all parts
 * @throws what `collectStatistics` throws
 */
export async function* collectParts(
  options: CollectOptions,
  share: { readonly index: number; readonly count: number } = { index: 0, count: 1 },
): AsyncGenerator<CollectedPart> {
  const { runner, emitter, signal } = options;
  const collection = new Collection(runner.model, options);
  const { parts, end: to } = collection;
  const own = parts.filter(({ index }) => index % share.count === share.index);
  const total = own.reduce((sum, { tokens }) => sum + tokens, 0);
  const tell = startProgress(emitter, "collecting statistics", "tokens");
  let done = 0;
  for (const part of own) {
    const collectors = collection.collectors(part);
    for (const batch of part.batches) {
      throwIfAborted(signal, `collecting statistics after ${done} of ${total} tokens`);
      const { tap, finish } = collection.tap(batch, collectors);
      await runner.run({ sequences: batch.sequences, to, tap, ...(signal && { signal }) });
      finish();
      done += batch.tokens;
      tell(done, total);
    }
    const layers = [...collectors.values()].map((collector) => collector.finish());
    yield { part: part.index, parts: parts.length, statistics: collection.partStatistics(part, layers) };
  }
}
