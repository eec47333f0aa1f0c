import { abortedError, CoppiceError, throwIfAborted } from "@coppice/core";
import { Redis } from "ioredis";
import type { RedisAddress } from "./redis-address.js";

/** Prefix of every key. */
export const keyPrefix = "coppice";
/** Longest pause between two attempts to reconnect: a restarted Redis should be found soon. */
const longestPauseMs = 2_000;

/**
 * A client that is connected, and reconnects for ever from then on: how long is too long is its owner's decision.
 * @throws COPPICE_EXECUTOR_UNREACHABLE, COPPICE_ABORTED
 */
export async function connectRedis(
  address: RedisAddress,
  options: { readonly timeoutMs: number; readonly signal?: AbortSignal | undefined },
): Promise<Redis> {
  const { timeoutMs, signal } = options;
  throwIfAborted(signal, "connecting to Redis");
  const client = new Redis(address.url, {
    lazyConnect: true,
    maxRetriesPerRequest: null,
    retryStrategy: (times) => Math.min(100 * times, longestPauseMs),
  });
  let last: Error | undefined;
  client.on("error", (error) => {
    last = error;
  });
  let timer: NodeJS.Timeout | undefined;
  let stop: (() => void) | undefined;
  try {
    await new Promise<void>((resolve, reject) => {
      stop = () => reject(abortedError(signal, "connecting to Redis"));
      signal?.addEventListener("abort", stop, { once: true });
      timer = setTimeout(() => reject(unreachable(address, timeoutMs, last)), timeoutMs);
      // A password that is refused will not be accepted later.
      client.on("error", (error) => {
        if (/NOAUTH|WRONGPASS|NOPERM|invalid.*password/i.test(error.message)) {
          reject(unreachable(address, undefined, error));
        }
      });
      client.once("ready", resolve);
      client.connect().catch((error: Error) => {
        last = error;
      });
    });
    return client;
  } catch (error) {
    client.disconnect();
    throw error;
  } finally {
    clearTimeout(timer);
    if (stop) signal?.removeEventListener("abort", stop);
  }
}

/** What is told when Redis does not answer. */
export function unreachable(
  { shown }: RedisAddress,
  milliseconds: number | undefined,
  cause: Error | undefined,
): CoppiceError {
  const time = milliseconds === undefined ? "" : ` for ${(milliseconds / 1000).toFixed(0)} s`;
  return new CoppiceError(
    "COPPICE_EXECUTOR_UNREACHABLE",
    `Redis at ${shown} could not be used${time}${cause ? `: ${cause.message || String((cause as NodeJS.ErrnoException).code)}` : ""}`,
    {
      cause,
      retryable: true,
      hint: "start redis-server there, or correct the address and the password; what was scored so far is kept",
      details: { address: shown },
    },
  );
}
