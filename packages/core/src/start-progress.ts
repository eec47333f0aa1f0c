import type { RunEmitter } from "./events.js";

/**
 * Begins to tell `progress` of work that is counted, with the time left if the rest goes as what is done.
 * @param stage what is being done, in words
 * @param unit what is counted
 * @returns to be called with what is done of how much
 */
export function startProgress(
  emitter: RunEmitter | undefined,
  stage: string,
  unit: string,
): (done: number, total: number) => void {
  const start = performance.now();
  return (done, total) => {
    const elapsed = performance.now() - start;
    emitter?.notify("progress", {
      stage,
      done,
      total,
      unit,
      ...(done > 0 && { etaMs: (elapsed / done) * (total - done) }),
    });
  };
}
