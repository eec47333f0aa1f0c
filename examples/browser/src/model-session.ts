import type { Answer, Request } from "./messages.js";

/** Milliseconds within which a worker gives its memory back; a token takes far less. */
const patience = 2000;

/** The worker that runs the models, with its end. */
export class ModelSession {
  readonly #worker: Worker;
  #ended = false;

  /** @param handle gets every answer but those that come after the end */
  constructor(handle: (answer: Answer) => void) {
    this.#worker = new Worker(new URL("./model-worker.ts", import.meta.url), { type: "module" });
    this.#worker.addEventListener("message", ({ data }: MessageEvent<Answer>) => {
      if (data.kind === "disposed") this.#worker.terminate();
      else if (!this.#ended) handle(data);
    });
    this.#worker.addEventListener("error", ({ message }) => {
      if (this.#ended) return;
      handle({
        kind: "failed",
        problem: {
          message: `The worker that runs the models failed${message ? `: ${message}` : " to start"}.`,
          advice: "Load again; if it stays, look whether all files of the page are on the server.",
        },
      });
    });
  }

  send(request: Request): void {
    this.#worker.postMessage(request);
  }

  /** The models are disposed, then the worker ends; one that does not answer ends as well. */
  end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.send({ kind: "dispose" });
    setTimeout(() => this.#worker.terminate(), patience);
  }
}
