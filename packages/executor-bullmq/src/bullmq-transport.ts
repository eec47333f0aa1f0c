import { setMaxListeners } from "node:events";
import {
  abortedError,
  CoppiceError,
  checkWholeNumber,
  isCoppiceError,
  type RunEmitter,
  throwIfAborted,
} from "@coppice/core";
import {
  type ParsedOutcome,
  parseOutcome,
  type SampleSet,
  WorkPlaces,
  type WorkRequest,
  type WorkTransport,
} from "@coppice/evaluate";
import type { Redis } from "ioredis";
import { connectRedis, unreachable } from "./connect.js";
import { noAnswer } from "./no-answer.js";
import { checkQueueName, parseRedisAddress, type RedisAddress } from "./redis-address.js";
import { tooLong, within } from "./within.js";
import { crashed, readRefusal, WorkQueue } from "./work-queue.js";

export interface BullmqTransportOptions {
  /** `redis://[user:password@]host[:port][/database]`. */
  readonly redis: string;
  /** Name of the queue; coordinator and workers use the same. Default "coppice". */
  readonly queue?: string;
  /** Most jobs in Redis at once; the others wait here. Default 256. */
  readonly window?: number;
  /** Longest time without any sign of life of a worker while jobs wait. Default 300 s. */
  readonly answerMs?: number;
  /** Longest time without Redis. Default 60 s. */
  readonly unreachableMs?: number;
  /** How often Redis is asked about jobs whose events may have been lost. Default 2 s. */
  readonly checkMs?: number;
  readonly signal?: AbortSignal;
  /** Gets a `warn` for every worker that refuses the work, and `progress` while no worker is there. */
  readonly emitter?: RunEmitter;
}

export const defaultQueue = "coppice";
/** Results of one job that may be unreadable before it is given up. */
const badResults = 3;
/** Time that closing may take when Redis does not answer. */
const closingMs = 2_000;
/** Silence after which waiting is told. */
const quietMs = 5_000;

interface Waiter {
  resolve(outcome: ParsedOutcome): void;
  reject(error: unknown): void;
}

/** A job that was put and has no result yet. */
interface Pending {
  readonly request: WorkRequest;
  readonly samples: SampleSet;
  readonly waiters: Set<Waiter>;
  bad: number;
  /** Being put now, so Redis may not know it yet. */
  putting: boolean;
}

/**
 * Connects to a queue whose workers run `startBullmqWorker`, in `coppice worker` or elsewhere.
 * @throws COPPICE_EXECUTOR_UNREACHABLE, COPPICE_USAGE, COPPICE_ABORTED
 */
export async function connectBullmq(options: BullmqTransportOptions): Promise<WorkTransport> {
  const address = parseRedisAddress(options.redis);
  const name = checkQueueName(options.queue ?? defaultQueue);
  const client = await connectRedis(address, {
    timeoutMs: options.unreachableMs ?? 60_000,
    signal: options.signal,
  });
  return new BullmqTransport(client, address, name, options);
}

/**
 * Redis only carries: what is wanted and what was answered is known here, every job is known by the hash of what it
 * asks. So a job that Redis lost is put again, and a result that comes twice or late changes nothing.
 */
class BullmqTransport implements WorkTransport {
  readonly preferredBatch: number;
  readonly #client: Redis;
  readonly #address: RedisAddress;
  readonly #queue: WorkQueue;
  readonly #options: BullmqTransportOptions;
  readonly #pending = new Map<string, Pending>();
  readonly #places: WorkPlaces;
  readonly #refusals = new Map<string, string>();
  readonly #removals = new Set<Promise<unknown>>();
  #lastLife = 0;
  #lastContact = 0;
  #lastError: Error | undefined;
  #timer: NodeJS.Timeout | undefined;
  #disposed: Promise<void> | undefined;

  constructor(client: Redis, address: RedisAddress, name: string, options: BullmqTransportOptions) {
    this.#client = client;
    this.#address = address;
    this.#options = options;
    const window = checkWholeNumber("window", options.window ?? 256);
    this.#places = new WorkPlaces(window);
    this.preferredBatch = Math.min(window, 64);
    const note = (error: Error) => {
      this.#lastError = error;
    };
    client.on("error", note);
    this.#queue = new WorkQueue(client, name, note);
    this.#queue.listen({
      onCompleted: (id, value) => this.#take(id, value),
      onFinished: (id) => void this.#check(id).catch(note),
      onProgress: (id, value) => this.#refused(id, value),
    });
  }

  async run(
    requests: readonly WorkRequest[],
    samples: SampleSet,
    options: { signal?: AbortSignal; onOutcome?: (outcome: ParsedOutcome) => void },
  ): Promise<ParsedOutcome[]> {
    const { signal, onOutcome } = options;
    throwIfAborted(signal, "waiting for workers");
    if (this.#disposed) throw disposed();
    // Every request listens; that is no leak.
    if (signal) setMaxListeners(0, signal);
    return Promise.all(
      requests.map(async (request) => {
        const outcome = await this.#one(request, samples, signal);
        onOutcome?.(outcome);
        return outcome;
      }),
    );
  }

  #one(request: WorkRequest, samples: SampleSet, signal: AbortSignal | undefined): Promise<ParsedOutcome> {
    return this.#places.with(
      signal,
      () =>
        new Promise<ParsedOutcome>((resolve, reject) => {
          if (this.#disposed) return reject(disposed());
          const stop = () => {
            this.#leave(request.id, waiter);
            reject(abortedError(signal, "waiting for workers"));
          };
          const settle =
            <T>(end: (value: T) => void) =>
            (value: T) => {
              signal?.removeEventListener("abort", stop);
              end(value);
            };
          const waiter: Waiter = { resolve: settle(resolve), reject: settle(reject) };
          if (signal?.aborted) return stop();
          signal?.addEventListener("abort", stop, { once: true });
          this.#want(request, samples, waiter);
        }),
    );
  }

  #want(request: WorkRequest, samples: SampleSet, waiter: Waiter): void {
    const known = this.#pending.get(request.id);
    if (known) {
      known.waiters.add(waiter);
      return;
    }
    if (this.#pending.size === 0) this.#awake();
    const pending: Pending = { request, samples, waiters: new Set([waiter]), bad: 0, putting: false };
    this.#pending.set(request.id, pending);
    this.#put(pending);
  }

  #put(pending: Pending): void {
    if (pending.putting) return;
    pending.putting = true;
    this.#queue
      .putSamples(pending.samples)
      .then(async () => {
        if (this.#pending.get(pending.request.id) === pending) await this.#queue.put(pending.request);
      })
      .catch((error: Error) => {
        // The next check puts it again, or finds that it has been too long.
        this.#lastError = error;
      })
      .finally(() => {
        pending.putting = false;
      });
  }

  #take(id: string, value: unknown): void {
    const pending = this.#pending.get(id);
    // A late or repeated result, or one that another coordinator waits for.
    if (!pending) return;
    let outcome: ParsedOutcome;
    try {
      outcome = parseOutcome(value, pending.request);
    } catch (error) {
      this.#again(pending, error);
      return;
    }
    this.#lastLife = performance.now();
    this.#pending.delete(id);
    // An error is no fact about the plan for ever: who asks again gets a new attempt.
    if (isCoppiceError(outcome.result)) this.#remove(id);
    for (const waiter of pending.waiters) waiter.resolve(outcome);
    if (this.#pending.size === 0) this.#rest();
  }

  /** Puts a job again whose result was of no use. */
  #again(pending: Pending, error: unknown): void {
    pending.bad++;
    if (pending.bad >= badResults) {
      this.#giveUp(pending, error);
      return;
    }
    this.#remove(pending.request.id).then(() => this.#put(pending));
  }

  #giveUp(pending: Pending, error: unknown): void {
    this.#pending.delete(pending.request.id);
    this.#remove(pending.request.id);
    for (const waiter of pending.waiters) waiter.reject(error);
    if (this.#pending.size === 0) this.#rest();
  }

  /** Asks Redis about a job. */
  async #check(id: string): Promise<void> {
    const pending = this.#pending.get(id);
    if (!pending || pending.putting) return;
    const found = await this.#queue.look(id);
    if (this.#pending.get(id) !== pending || pending.putting) return;
    if (found.state === "missing") this.#put(pending);
    else if (found.state === "waiting") this.#refused(id, found.progress);
    else if (found.state === "completed") this.#take(id, found.value);
    else if (found.state === "failed") {
      const fatal = crashed(found.reason);
      if (fatal) this.#giveUp(pending, fatal);
      else {
        this.#again(
          pending,
          new CoppiceError(
            "COPPICE_EXECUTOR_RESULT",
            `workers could not do a job: ${found.reason.slice(0, 2_000)}`,
          ),
        );
      }
    }
  }

  #leave(id: string, waiter: Waiter): void {
    const pending = this.#pending.get(id);
    if (!pending?.waiters.delete(waiter) || pending.waiters.size > 0) return;
    this.#pending.delete(id);
    this.#remove(id);
    if (this.#pending.size === 0) this.#rest();
  }

  /** Removes a job from Redis, best effort: one that a worker is at stays, and its result is kept there. */
  #remove(id: string): Promise<void> {
    const removal = this.#queue.remove(id).catch(() => {});
    this.#removals.add(removal);
    removal.finally(() => this.#removals.delete(removal));
    return removal;
  }

  #refused(id: string, value: unknown): void {
    const refusal = this.#pending.has(id) ? readRefusal(value) : undefined;
    if (!refusal || this.#refusals.has(refusal.worker)) return;
    this.#refusals.set(refusal.worker, refusal.refused);
    const message = `the worker ${refusal.worker} refused and stopped: ${refusal.refused}`;
    this.#options.emitter?.notify("warn", { code: "COPPICE_EXECUTOR_FOREIGN", message });
  }

  #awake(): void {
    this.#lastLife = performance.now();
    this.#lastContact = performance.now();
    this.#schedule();
  }

  #rest(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #schedule(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#watch(), this.#options.checkMs ?? 2_000);
  }

  /** Looks after the jobs: finds results whose event was lost and jobs that Redis lost, and ends waiting in vain. */
  async #watch(): Promise<void> {
    const { unreachableMs = 60_000, answerMs = 300_000, emitter } = this.#options;
    try {
      const left = Math.max(1, unreachableMs - (performance.now() - this.#lastContact));
      await within(left, this.#look());
      this.#lastContact = performance.now();
    } catch (error) {
      if (error instanceof Error && error !== tooLong) this.#lastError = error;
    }
    const now = performance.now();
    if (now - this.#lastContact >= unreachableMs) {
      this.#fail(unreachable(this.#address, unreachableMs, this.#lastError));
    } else if (now - this.#lastLife >= answerMs) {
      const where = `the queue ${this.#queue.name} at ${this.#address.shown}`;
      const waiting = this.#pending.size;
      this.#fail(noAnswer({ where, milliseconds: answerMs, waiting, refusals: this.#refusals }));
    } else if (now - this.#lastLife >= quietMs) {
      const stage = `waiting for a worker at ${this.#address.shown}, queue ${this.#queue.name}`;
      emitter?.notify("progress", { stage, done: 0, total: this.#pending.size, unit: "plans" });
    }
    if (this.#pending.size > 0 && !this.#disposed) this.#schedule();
  }

  async #look(): Promise<void> {
    if (await this.#queue.alive()) this.#lastLife = performance.now();
    const sets = new Map([...this.#pending.values()].map(({ samples }) => [samples.hash, samples]));
    for (const set of sets.values()) await this.#queue.putSamples(set);
    await Promise.all([...this.#pending.keys()].map((id) => this.#check(id)));
  }

  #fail(error: CoppiceError): void {
    for (const pending of [...this.#pending.values()]) this.#giveUp(pending, error);
  }

  dispose(): Promise<void> {
    this.#disposed ??= this.#close();
    return this.#disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #close(): Promise<void> {
    this.#rest();
    for (const pending of [...this.#pending.values()]) this.#giveUp(pending, disposed());
    await within(closingMs, Promise.all([...this.#removals])).catch(() => {});
    await within(closingMs, this.#queue.close()).catch(() => {});
    this.#client.disconnect();
  }
}

function disposed(): CoppiceError {
  return new CoppiceError("COPPICE_BACKEND_DISPOSED", "the queue was used after its disposal");
}
