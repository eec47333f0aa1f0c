import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { TextModel } from "@coppice/runtime";
import { answerText, encodePrompts, sendJson } from "./answer-text.js";
import { ApiError, shuttingDown, toApiError } from "./api-error.js";
import { readJson } from "./read-json.js";
import { Slots } from "./slots.js";
import { parseTextRequest, type TextRequest } from "./text-request.js";

export interface ServiceOptions {
  readonly model: TextModel;
  readonly name: string;
  /** True when only names of this machine are right in `Host`. */
  readonly isLocal: boolean;
  readonly apiKey: string | undefined;
  readonly parallel: number;
  readonly queue: number;
  readonly maxBodyBytes: number;
  readonly slowMs: number;
  readonly onRequest: ((record: RequestRecord) => void) | undefined;
}

export interface RequestRecord {
  readonly method: string;
  readonly path: string;
  /** 499 where the client left before the answer was complete, as in the logs of nginx. */
  readonly status: number;
  readonly seconds: number;
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** What failed, where the status is 500 or more. */
  readonly error?: unknown;
}

interface Route {
  readonly method: string;
  readonly kind: TextRequest["kind"] | "models" | "health";
}

const routes = new Map<string, Route>([
  ["/v1/chat/completions", { method: "POST", kind: "chat" }],
  ["/v1/completions", { method: "POST", kind: "completion" }],
  ["/v1/models", { method: "GET", kind: "models" }],
  ["/health", { method: "GET", kind: "health" }],
]);
const oneModel = "/v1/models/";

/** True for the names by which only this machine can mean itself. */
export function isLocalHost(host: string): boolean {
  return ["127.0.0.1", "::1", "localhost"].includes(host.toLowerCase());
}

const noTokens = { promptTokens: 0, completionTokens: 0 };

/** Answers HTTP requests. */
export class Service {
  readonly slots: Slots;
  readonly #options: ServiceOptions;
  readonly #key: Buffer | undefined;
  readonly #created = Math.floor(Date.now() / 1000);
  /** Requests that are not done, and what stops them. */
  readonly #open = new Map<Promise<void>, AbortController>();
  #stopped = false;

  constructor(options: ServiceOptions) {
    this.#options = options;
    this.slots = new Slots(options.parallel, options.queue);
    this.#key = options.apiKey === undefined ? undefined : digest(options.apiKey);
  }

  handle(request: IncomingMessage, response: ServerResponse): void {
    const stop = new AbortController();
    const work = this.#answer(request, response, stop).finally(() => this.#open.delete(work));
    this.#open.set(work, stop);
  }

  /** Ends all requests, and resolves when the last is done. */
  async stop(): Promise<void> {
    this.#stopped = true;
    for (const stop of this.#open.values()) stop.abort(shuttingDown());
    await Promise.all(this.#open.keys());
  }

  async #answer(request: IncomingMessage, response: ServerResponse, stop: AbortController): Promise<void> {
    const started = performance.now();
    const path = request.url?.split("?")[0] ?? "/";
    let left = false;
    response.on("close", () => {
      left = !response.writableFinished;
      if (left) stop.abort(new Error("the client left"));
    });
    let tokens = noTokens;
    let failure: ApiError | undefined;
    try {
      if (this.#stopped) throw shuttingDown();
      this.#checkHost(request);
      tokens = await this.#route(path, request, response, stop.signal);
    } catch (error) {
      failure = this.#stopped ? shuttingDown() : toApiError(error, "prompt");
      if (response.headersSent) response.destroy();
      else if (!response.destroyed) sendJson(response, failure.status, failure.body, failure.headers);
    }
    this.#options.onRequest?.({
      method: request.method ?? "",
      path,
      status: left ? 499 : (failure?.status ?? 200),
      seconds: (performance.now() - started) / 1000,
      ...tokens,
      ...(!left && failure && failure.status >= 500 && { error: failure.cause ?? failure }),
    });
  }

  async #route(path: string, request: IncomingMessage, response: ServerResponse, signal: AbortSignal) {
    const route = routes.get(path.startsWith(oneModel) ? "/v1/models" : path);
    if (!route) {
      throw new ApiError(404, `there is nothing at ${path.slice(0, 200)}`, { code: "unknown_url" });
    }
    if (route.method !== request.method) {
      throw new ApiError(405, `${path.slice(0, 200)} takes ${route.method}, not ${request.method}`, {
        code: "method_not_allowed",
        headers: { allow: route.method },
      });
    }
    if (route.kind === "health") {
      const { running, waiting } = this.slots;
      sendJson(response, 200, { status: "ok", running, waiting });
      return noTokens;
    }
    this.#checkKey(request);
    if (route.kind === "models") {
      sendJson(response, 200, this.#models(path));
      return noTokens;
    }
    return this.#text(route.kind, request, response, signal);
  }

  #models(path: string): object {
    const model = { id: this.#options.name, object: "model", created: this.#created, owned_by: "coppice" };
    if (!path.startsWith(oneModel)) return { object: "list", data: [model] };
    this.#checkModel(decodeName(path.slice(oneModel.length)));
    return model;
  }

  async #text(
    kind: TextRequest["kind"],
    request: IncomingMessage,
    response: ServerResponse,
    signal: AbortSignal,
  ) {
    const { model, maxBodyBytes, slowMs } = this.#options;
    const parsed = parseTextRequest(kind, await readJson(request, maxBodyBytes));
    this.#checkModel(parsed.model);
    const prompts = encodePrompts(model, parsed);
    const release = await this.slots.acquire(signal);
    try {
      const texts = await answerText(model, parsed, prompts, response, { signal, slowMs });
      return {
        promptTokens: texts.reduce((sum, text) => sum + text.promptTokens, 0),
        completionTokens: texts.reduce((sum, text) => sum + text.tokens.length, 0),
      };
    } finally {
      release();
    }
  }

  #checkModel(name: string): void {
    if (name === this.#options.name) return;
    throw new ApiError(
      404,
      `the model ${JSON.stringify(name.slice(0, 200))} is not here; this server has ${JSON.stringify(this.#options.name)}`,
      { param: "model", code: "model_not_found" },
    );
  }

  /**
   * A page on the internet can have its own name lead to this machine and then read what it likes (DNS rebinding); its
   * requests carry that name.
   */
  #checkHost({ headers: { host = "" } }: IncomingMessage): void {
    const name = host.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
    if (!this.#options.isLocal || isLocalHost(name)) return;
    throw new ApiError(
      403,
      `the request is for the host ${JSON.stringify(host.slice(0, 200))}, expected localhost`,
      { code: "host_not_allowed" },
    );
  }

  #checkKey({ headers: { authorization = "" } }: IncomingMessage): void {
    if (!this.#key) return;
    const given = /^Bearer +(.*)$/i.exec(authorization)?.[1];
    if (given !== undefined && timingSafeEqual(digest(given), this.#key)) return;
    throw new ApiError(401, given === undefined ? "an API key is needed" : "the API key is not right", {
      code: "invalid_api_key",
      headers: { "www-authenticate": "Bearer" },
    });
  }
}

/** Keys of any length become equally long, so that comparing them takes the same time. */
function digest(key: string): Buffer {
  return createHash("sha256").update(key).digest();
}

function decodeName(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
