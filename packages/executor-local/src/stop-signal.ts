import { setMaxListeners } from "node:events";

/** Aborted when the caller aborts or when `failed` says that a part of the work has failed. */
export function stopSignal(outer: AbortSignal | undefined, failed: AbortController): AbortSignal {
  const signal = outer ? AbortSignal.any([outer, failed.signal]) : failed.signal;
  // Every plan and worker listens; that is no leak.
  setMaxListeners(0, signal);
  return signal;
}
