import { abortedError } from "@coppice/core";

/** A bounded number of places for work; who finds none waits, first come, first served. */
export class WorkPlaces {
  #free: number;
  readonly #line: (() => void)[] = [];

  constructor(places: number) {
    this.#free = places;
  }

  /** Does the work when there is a place for it. @throws COPPICE_ABORTED while it waits for one */
  async with<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    await this.#enter(signal);
    try {
      return await work();
    } finally {
      const next = this.#line.shift();
      if (next) next();
      else this.#free++;
    }
  }

  async #enter(signal: AbortSignal | undefined): Promise<void> {
    if (this.#free > 0) {
      this.#free--;
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const enter = () => {
        signal?.removeEventListener("abort", stop);
        resolve();
      };
      const stop = () => {
        const at = this.#line.indexOf(enter);
        if (at >= 0) this.#line.splice(at, 1);
        reject(abortedError(signal, "waiting for a place"));
      };
      signal?.addEventListener("abort", stop, { once: true });
      this.#line.push(enter);
    });
  }
}
