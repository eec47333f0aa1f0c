import type { ServerResponse } from "node:http";

/**
 * Sends server-sent events no faster than the client reads them: what waits for a slow one is what the socket holds,
 * and nothing is computed for it meanwhile.
 */
export class EventStream {
  readonly #response: ServerResponse;
  readonly #slowMs: number;

  /** @param slowMs how long a client may read nothing before its connection is closed */
  constructor(response: ServerResponse, slowMs: number) {
    this.#response = response;
    this.#slowMs = slowMs;
    response.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      // Proxies such as nginx would hold events back to fill their buffers.
      "x-accel-buffering": "no",
    });
  }

  /** Resolves once the client has room for more; a client that is gone or too slow has aborted its request by then. */
  async send(data: object | "[DONE]"): Promise<void> {
    const text = typeof data === "string" ? data : JSON.stringify(data);
    if (this.#response.destroyed || this.#response.write(`data: ${text}\n\n`)) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#response.off("drain", done).off("close", done);
        resolve();
      };
      const timer = setTimeout(() => this.#response.destroy(), this.#slowMs);
      this.#response.on("drain", done).on("close", done);
    });
  }

  end(): void {
    this.#response.end();
  }
}
