import { isCoppiceError } from "@coppice/core";
import type { WorkOutcome, WorkRequest, WorkServer } from "@coppice/evaluate";
import { type Job, WaitingError, Worker } from "bullmq";
import { defaultQueue } from "./bullmq-transport.js";
import { connectRedis, keyPrefix } from "./connect.js";
import { checkQueueName, parseRedisAddress } from "./redis-address.js";
import { type Refusal, samplesKey, stalledTries } from "./work-queue.js";

export interface BullmqWorkerOptions {
  readonly redis: string;
  /** Default "coppice". */
  readonly queue?: string;
  /** Answers the requests. Not disposed. */
  readonly server: WorkServer;
  /** Who works, in words: host and process. */
  readonly worker: string;
  /** Requests at once; two keep the processes of a pool busy between plans. Default 2. */
  readonly concurrency?: number;
  /**
   * Time without renewal after which others take a job over; they look twice as often. Default 10 s, which is safe
   * because the computation runs in other processes and never holds up a renewal.
   */
  readonly lockMs?: number;
  /** Longest time to wait for Redis at the start. Default 60 s. */
  readonly unreachableMs?: number;
  readonly signal?: AbortSignal;
  /** Told after every request. */
  readonly onAnswer?: (answer: {
    readonly id: string;
    readonly failed: boolean;
    readonly done: number;
  }) => void;
  /** Told when Redis fails; the worker goes on and reconnects. */
  readonly onProblem?: (error: Error) => void;
}

export interface BullmqWorker extends AsyncDisposable {
  /** Resolves after `close`; rejects with COPPICE_EXECUTOR_FOREIGN when the queue holds work that is not for this worker. */
  readonly done: Promise<void>;
  /** Puts work in hand back, for others to take at once, and disconnects. */
  close(): Promise<void>;
}

/** Time for putting work back when the worker ends. */
const closingMs = 5_000;

/**
 * Takes work from a queue until it is closed or aborted. Work for another model, backend or release is put back, and
 * ends the worker.
 * @throws COPPICE_EXECUTOR_UNREACHABLE, COPPICE_USAGE, COPPICE_ABORTED
 */
export async function startBullmqWorker(options: BullmqWorkerOptions): Promise<BullmqWorker> {
  const { server, worker: who, signal, onAnswer, onProblem, lockMs = 10_000 } = options;
  const address = parseRedisAddress(options.redis);
  const queue = checkQueueName(options.queue ?? defaultQueue);
  const client = await connectRedis(address, { timeoutMs: options.unreachableMs ?? 60_000, signal });
  const problem = (error: Error) => onProblem?.(error);
  client.on("error", problem);
  const ending = new AbortController();
  let done = 0;
  let closed: Promise<void> | undefined;
  let finish: (error?: unknown) => void = () => {};
  const over = new Promise<void>((resolve, reject) => {
    finish = (error) => (error === undefined ? resolve() : reject(error));
  });
  // Whoever only closes need not handle it.
  over.catch(() => {});

  const samples = async (hash: string): Promise<string> => {
    const text = await client.get(samplesKey(queue, hash));
    // The coordinator puts samples and job again.
    if (text === null) throw new Error(`the samples ${hash} are not in Redis`);
    return text;
  };

  const work = async (job: Job<WorkRequest, WorkOutcome>, token?: string): Promise<WorkOutcome> => {
    try {
      const outcome = await server.answer(job.data, samples, { signal: ending.signal });
      onAnswer?.({ id: outcome.id, failed: outcome.error !== undefined, done: ++done });
      return outcome;
    } catch (error) {
      const foreign = isCoppiceError(error, "COPPICE_EXECUTOR_FOREIGN");
      if (!foreign && !ending.signal.aborted) throw error;
      if (foreign) {
        const refusal: Refusal = { refused: error.message, worker: who };
        await job.updateProgress(refusal);
        void close(error);
      }
      await job.moveToWait(token);
      throw new WaitingError();
    }
  };

  const worker = new Worker<WorkRequest, WorkOutcome>(queue, work, {
    connection: client,
    prefix: keyPrefix,
    name: who,
    concurrency: options.concurrency ?? 2,
    lockDuration: lockMs,
    stalledInterval: Math.ceil(lockMs / 2),
    // A job may stall this often and is tried again; once more fails it.
    maxStalledCount: stalledTries - 1,
    runRetryDelay: 1_000,
  });
  worker.on("error", problem);

  const close = (error?: unknown): Promise<void> => {
    closed ??= (async () => {
      signal?.removeEventListener("abort", stop);
      // Nothing new is taken while work goes back.
      const paused = worker.pause(true);
      ending.abort();
      await paused.catch(() => {});
      const limit = new Promise<void>((resolve) => setTimeout(resolve, closingMs).unref());
      await Promise.race([worker.close().catch(() => {}), limit]);
      client.disconnect();
      finish(error);
    })();
    return closed;
  };
  const stop = () => void close();
  signal?.addEventListener("abort", stop, { once: true });
  if (signal?.aborted) stop();
  return { done: over, close: () => close(), [Symbol.asyncDispose]: () => close() };
}
