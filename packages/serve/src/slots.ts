import { ApiError } from "./api-error.js";

/** Lets a number of requests run and a number wait, first come, first served; more are refused. */
export class Slots {
  readonly #parallel: number;
  readonly #queue: number;
  #running = 0;
  /** What lets each of those that wait go on. */
  #waiting: (() => void)[] = [];
  /** Seconds that a request takes, averaged with more weight on the last ones. */
  #seconds = 1;

  constructor(parallel: number, queue: number) {
    this.#parallel = parallel;
    this.#queue = queue;
  }

  get running(): number {
    return this.#running;
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  /**
   * Waits for a place among the requests that run.
   * @returns gives it back; to be called once
   * @throws ApiError 429 with Retry-After when as many wait as may; the signal's reason when it aborts first
   */
  async acquire(signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.#running >= this.#parallel) await this.#wait(signal);
    else this.#running++;
    const started = performance.now();
    return () => {
      this.#seconds = 0.8 * this.#seconds + (0.2 * (performance.now() - started)) / 1000;
      const next = this.#waiting.shift();
      // The place passes on; nobody who comes now gets ahead of who waits.
      if (next) next();
      else this.#running--;
    };
  }

  #wait(signal: AbortSignal): Promise<void> {
    if (this.#waiting.length >= this.#queue) {
      const seconds = Math.ceil((this.#seconds * (this.#queue + this.#parallel)) / this.#parallel);
      throw new ApiError(
        429,
        `${this.#running} requests run and ${this.#waiting.length} wait, which is all that this server takes; try again later`,
        { code: "queue_full", headers: { "retry-after": String(Math.min(60, Math.max(1, seconds))) } },
      );
    }
    return new Promise((resolve, reject) => {
      const start = () => {
        signal.removeEventListener("abort", stop);
        resolve();
      };
      const stop = () => {
        this.#waiting = this.#waiting.filter((other) => other !== start);
        reject(signal.reason);
      };
      signal.addEventListener("abort", stop, { once: true });
      this.#waiting.push(start);
    });
  }
}
