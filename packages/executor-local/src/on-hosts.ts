import { type RunEmitter, startProgress } from "@coppice/core";
import type { WorkerEvent } from "./protocol.js";
import { stopSignal } from "./stop-signal.js";

/** Waits for all; the first failure stops the others. */
export async function all<T, R>(
  items: readonly T[],
  outer: AbortSignal | undefined,
  work: (item: T, index: number, signal: AbortSignal) => Promise<R>,
): Promise<R[]> {
  const failed = new AbortController();
  const signal = stopSignal(outer, failed);
  try {
    return await Promise.all(items.map((item, i) => work(item, i, signal)));
  } catch (error) {
    failed.abort();
    throw error;
  }
}

/** Adds up what the workers have done. */
export function progressOf(
  emitter: RunEmitter | undefined,
  stage: string,
  unit: string,
): (event: WorkerEvent) => void {
  const tell = startProgress(emitter, stage, unit);
  let done = 0;
  return (event) => {
    if (event.type !== "done") return;
    done += event.count;
    tell(done, event.total);
  };
}
