import { createServer, type Server } from "node:http";
import { isIPv6, type Socket } from "node:net";
import { CoppiceError, checkWholeNumber } from "@coppice/core";
import type { TextModel } from "@coppice/runtime";
import { ApiError } from "./api-error.js";
import { isLocalHost, type RequestRecord, Service } from "./service.js";

export interface ServeOptions {
  readonly model: TextModel;
  /** How requests call the model. */
  readonly name: string;
  /** Address to listen on. Default 127.0.0.1: nobody but this machine. */
  readonly host?: string;
  /** Default 8080; 0 takes a free one. */
  readonly port?: number;
  /** When given, requests must carry it as `Authorization: Bearer <key>`. */
  readonly apiKey?: string;
  /** Requests that run at the same time, their tokens in turns. Default 4. */
  readonly parallel?: number;
  /** Requests that wait beyond those; more get status 429. Default 64. */
  readonly queue?: number;
  /** Default 2 MiB. */
  readonly maxBodyBytes?: number;
  /** Seconds that the client of a stream may read nothing before it is cut off. Default 30. */
  readonly slowClientSeconds?: number;
  /** Called after every request. */
  readonly onRequest?: (record: RequestRecord) => void;
}

export interface ModelServer extends AsyncDisposable {
  /** Address of the server; the API is at `/v1` below it. */
  readonly url: string;
  /** Requests that run now. */
  readonly running: number;
  /** Requests that wait for their turn. */
  readonly waiting: number;
  /** Stops all requests, closes all connections and frees the port. The model stays open. */
  close(): Promise<void>;
}

/** Connections at the same time; each may hold one body of `maxBodyBytes`. */
const maxConnections = 1024;
/** Milliseconds that the headers, and the whole of a request, may take to arrive. */
const headersTimeout = 15_000;
const requestTimeout = 60_000;

/**
 * Serves a model under the API of OpenAI: `/v1/chat/completions`, `/v1/completions`, `/v1/models`, and `/health`.
 * @throws COPPICE_USAGE for numbers out of range, or when the address cannot be listened on
 */
export async function serveModel(options: ServeOptions): Promise<ModelServer> {
  const { model, name, host = "127.0.0.1", port = 8080, apiKey, onRequest } = options;
  const { slowClientSeconds = 30 } = options;
  if (!(slowClientSeconds > 0 && slowClientSeconds <= 86_400)) {
    throw new CoppiceError(
      "COPPICE_USAGE",
      `slowClientSeconds is ${slowClientSeconds}, expected up to 86400`,
    );
  }
  if (apiKey === "") throw new CoppiceError("COPPICE_USAGE", "the API key is empty");
  const service = new Service({
    model,
    name,
    isLocal: isLocalHost(host),
    apiKey,
    parallel: checkWholeNumber("parallel", options.parallel ?? 4),
    queue: checkWholeNumber("queue", options.queue ?? 64, undefined, 0),
    maxBodyBytes: checkWholeNumber("maxBodyBytes", options.maxBodyBytes ?? 2 * 1024 * 1024),
    slowMs: slowClientSeconds * 1000,
    onRequest,
  });
  const server = createServer({ headersTimeout, requestTimeout }, (request, response) => {
    service.handle(request, response);
  });
  server.maxConnections = maxConnections;
  server.on("clientError", refuseMalformed);
  const bound = await listen(server, host, port);
  let closed: Promise<void> | undefined;
  const close = () => {
    closed ??= (async () => {
      const ended = new Promise((resolve) => server.close(resolve));
      await service.stop();
      server.closeAllConnections();
      await ended;
    })();
    return closed;
  };
  return {
    url: `http://${isIPv6(host) ? `[${host}]` : host}:${bound}`,
    get running() {
      return service.slots.running;
    },
    get waiting() {
      return service.slots.waiting;
    },
    close,
    [Symbol.asyncDispose]: close,
  };
}

/** Answers what is no HTTP at all. */
function refuseMalformed(error: NodeJS.ErrnoException, socket: Socket): void {
  if (error.code === "ECONNRESET" || !socket.writable) {
    socket.destroy();
    return;
  }
  const [status, reason] = malformed[error.code ?? ""] ?? [400, "Bad Request"];
  const body = JSON.stringify(new ApiError(status, `the request is not usable: ${reason}`).body);
  socket.end(
    `HTTP/1.1 ${status} ${reason}\r\nconnection: close\r\ncontent-type: application/json\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}

const malformed: Readonly<Record<string, readonly [number, string]>> = {
  HPE_HEADER_OVERFLOW: [431, "Request Header Fields Too Large"],
  ERR_HTTP_REQUEST_TIMEOUT: [408, "Request Timeout"],
};

/** @returns the port */
function listen(server: Server, host: string, port: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const refuse = (cause: NodeJS.ErrnoException) =>
      reject(
        new CoppiceError("COPPICE_USAGE", `cannot listen on ${host}, port ${port}: ${cause.message}`, {
          cause,
          ...(cause.code === "EADDRINUSE" && { hint: "choose another port; 0 takes a free one" }),
        }),
      );
    server.once("error", refuse);
    try {
      server.listen(port, host, () => {
        server.off("error", refuse);
        const address = server.address();
        resolve(typeof address === "object" && address ? address.port : port);
      });
    } catch (cause) {
      refuse(cause as NodeJS.ErrnoException);
    }
  });
}
