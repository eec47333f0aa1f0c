import { throwIfAborted } from "@coppice/core";

/** Milliseconds that a computation may hold the thread: short for a person who stops it, long beside what a turn costs. */
const longest = 50;

/** Lets other work of the thread happen during a long computation, and the signal that stops it. */
export class Turns {
  readonly #signal: AbortSignal | undefined;
  readonly #doing: string;
  #since = performance.now();

  /** @param doing what is stopped, for the message */
  constructor(signal: AbortSignal | undefined, doing: string) {
    this.#signal = signal;
    this.#doing = doing;
  }

  /** @throws COPPICE_ABORTED */
  async next(): Promise<void> {
    if (performance.now() - this.#since > longest) {
      await new Promise((resolve) => setTimeout(resolve, 0));
      this.#since = performance.now();
    }
    throwIfAborted(this.#signal, this.#doing);
  }
}
