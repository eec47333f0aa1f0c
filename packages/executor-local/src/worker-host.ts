import { abortedError, CoppiceError, isCoppiceError, reviveError, throwIfAborted } from "@coppice/core";
import type { FromWorker, Method, WorkerEvent, WorkerMethods } from "./protocol.js";
import { type Isolation, startWorker, type WorkerPort } from "./worker-port.js";

/** Times that one call may end its worker, or find its device lost, before it is given up: an accident repeats rarely, a fault always. */
const attempts = 3;

export interface CallOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onEvent?: (event: WorkerEvent) => void;
  /** True: goes on besides others of which this is true. Default: when nothing else does. */
  readonly beside?: boolean;
}

interface Current {
  readonly onEvent: ((event: WorkerEvent) => void) | undefined;
  resolve(result: unknown): void;
  reject(error: unknown): void;
}

/**
 * One worker and the calls that wait for it, one at a time unless they say otherwise. When the worker ends unexpectedly it is
 * started again, everything that made its state is repeated, and then the calls that were running: only they can be to blame.
 * A worker whose device is lost is ended, so that the next one opens another.
 */
export class WorkerHost {
  readonly #isolation: Isolation;
  /** Calls that make the state of a fresh worker, by name. */
  readonly #state = new Map<string, { method: Method; params: unknown }>();
  #port: WorkerPort | undefined;
  /** Calls that the worker was sent, by number. */
  readonly #current = new Map<number, Current>();
  /** The state of the worker that runs. */
  #ready: Promise<void> | undefined;
  /** The end of the last call that goes on alone. */
  #last: Promise<unknown> = Promise.resolve();
  /** Ends of the calls since then that go on besides one another. */
  readonly #besides = new Set<Promise<unknown>>();
  #nextId = 1;
  #busyMs = 0;
  #busySince = 0;
  #disposed = false;

  constructor(isolation: Isolation) {
    this.#isolation = isolation;
  }

  /** Milliseconds in which the worker had something to do. */
  get busyMs(): number {
    return this.#busyMs;
  }

  /** A call that must be repeated when the worker is started again, until `forget(name)`. */
  async establish<M extends Method>(
    name: string,
    method: M,
    params: WorkerMethods[M]["params"],
    options: CallOptions = {},
  ): Promise<WorkerMethods[M]["result"]> {
    const result = await this.call(method, params, options);
    this.#state.set(name, { method, params });
    return result;
  }

  forget(name: string): void {
    this.#state.delete(name);
  }

  /**
   * @throws COPPICE_BACKEND_CRASHED when the worker ended at every attempt, COPPICE_BACKEND_LOST when its device was lost at
   * the last one, COPPICE_BACKEND_DISPOSED, COPPICE_ABORTED
   * at once when the signal is aborted, and what the worker threw
   */
  call<M extends Method>(
    method: M,
    params: WorkerMethods[M]["params"],
    options: CallOptions = {},
  ): Promise<WorkerMethods[M]["result"]> {
    const { signal, beside = false } = options;
    const before = beside ? this.#last : Promise.all([this.#last, ...this.#besides]);
    const turn = before.then(() => {
      throwIfAborted(signal, `waiting for a worker to ${words[method]}`);
      return this.#attempt(method, params, options);
    });
    const end = turn.then(
      () => {},
      () => {},
    );
    if (beside) {
      this.#besides.add(end);
      void end.then(() => this.#besides.delete(end));
    } else this.#last = end;
    return untilAborted(turn, signal, words[method]) as Promise<WorkerMethods[M]["result"]>;
  }

  async dispose(): Promise<void> {
    this.#disposed = true;
    await this.#port?.kill();
    await Promise.all([this.#last, ...this.#besides]);
  }

  async #attempt(method: Method, params: unknown, options: CallOptions): Promise<unknown> {
    for (let attempt = 1; ; attempt++) {
      let port: WorkerPort | undefined;
      try {
        this.#ready ??= this.#restore();
        await this.#ready;
        const answer = this.#send(method, params, options);
        port = this.#port;
        return await answer;
      } catch (error) {
        if (isCoppiceError(error, "COPPICE_BACKEND_LOST")) {
          // One of several calls ends it; the others find the next worker.
          if (this.#port === port) await port?.kill();
          if (attempt < attempts && !options.signal?.aborted) continue;
        }
        if (!(error instanceof WorkerEnd)) throw error;
        if (this.#disposed) throw disposed();
        if (attempt < attempts && !options.signal?.aborted) continue;
        throw new CoppiceError(
          "COPPICE_BACKEND_CRASHED",
          `a worker ended ${attempt} times while it was to ${words[method]}; the last time with ${error.reason}`,
          {
            hint: "when memory is short, use fewer workers",
            details: { attempts: attempt, reason: error.reason },
          },
        );
      }
    }
  }

  /** Repeats what made the state of a worker that ended. */
  async #restore(): Promise<void> {
    try {
      for (const call of this.#state.values()) await this.#send(call.method, call.params, {});
    } catch (error) {
      this.#ready = undefined;
      throw error;
    }
  }

  #send(method: Method, params: unknown, { signal, onEvent }: CallOptions): Promise<unknown> {
    if (this.#disposed) throw disposed();
    this.#port ??= startWorker(this.#isolation, {
      onMessage: (message) => this.#receive(message),
      onExit: (reason) => {
        this.#port = undefined;
        this.#ready = undefined;
        for (const { reject } of this.#current.values()) reject(new WorkerEnd(reason));
      },
    });
    const port = this.#port;
    const id = this.#nextId++;
    const stop = () => port.send({ type: "abort", id });
    signal?.addEventListener("abort", stop, { once: true });
    if (this.#current.size === 0) this.#busySince = performance.now();
    return new Promise((resolve, reject) => {
      this.#current.set(id, { onEvent, resolve, reject });
      port.send({ type: "call", id, method, params });
    }).finally(() => {
      this.#current.delete(id);
      if (this.#current.size === 0) this.#busyMs += performance.now() - this.#busySince;
      signal?.removeEventListener("abort", stop);
    });
  }

  #receive(message: FromWorker): void {
    const current = this.#current.get(message.id);
    if (!current) return;
    if (message.type === "event") current.onEvent?.(message.event);
    else if (message.type === "result") current.resolve(message.result);
    else current.reject(reviveError(message.error));
  }
}

/** The worker is gone; never leaves this file. */
class WorkerEnd extends Error {
  readonly reason: string;

  constructor(reason: string) {
    super(reason);
    this.reason = reason;
  }
}

/** Settles at the abort, although the work ends a little later: a computation is stopped between batches only. */
function untilAborted<T>(work: Promise<T>, signal: AbortSignal | undefined, what: string): Promise<T> {
  if (!signal) return work;
  return new Promise((resolve, reject) => {
    const stop = () => reject(abortedError(signal, `waiting for a worker to ${what}`));
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}

function disposed(): CoppiceError {
  return new CoppiceError("COPPICE_BACKEND_DISPOSED", "the workers were used after their disposal");
}

const words: Readonly<Record<Method, string>> = {
  open: "load the model",
  createScorer: "prepare the samples",
  disposeScorer: "forget samples",
  evaluate: "evaluate a plan",
  scoreTask: "evaluate a task",
  scorePositions: "evaluate a text",
  calibrationData: "read the data",
  continuePrompts: "continue prompts",
  encodeTask: "read the samples",
  writeGroup: "write samples",
  collectStatistics: "collect statistics",
  collectByLayers: "collect statistics layer by layer",
  generate: "generate text",
  logits: "compute logits",
};
