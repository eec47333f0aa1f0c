import { isCoppiceError } from "@coppice/core";

export interface ApiErrorOptions {
  /** The field of the request that is at fault. */
  readonly param?: string;
  /** Stable word for programs. */
  readonly code?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly cause?: unknown;
}

/** An error as users of the API know it: a status, and a JSON body with message, type, param and code. */
export class ApiError extends Error {
  readonly status: number;
  readonly param: string | null;
  readonly code: string | null;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, message: string, options: ApiErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "ApiError";
    this.status = status;
    this.param = options.param ?? null;
    this.code = options.code ?? null;
    this.headers = options.headers ?? {};
  }

  get body(): { readonly error: Readonly<Record<"message" | "type" | "param" | "code", string | null>> } {
    const type =
      this.status === 429
        ? "rate_limit_error"
        : this.status >= 500
          ? "server_error"
          : "invalid_request_error";
    return { error: { message: this.message, type, param: this.param, code: this.code } };
  }
}

/**
 * What an error of the model means to the client.
 * @param param the field that held the prompt
 */
export function toApiError(error: unknown, param: string): ApiError {
  if (error instanceof ApiError) return error;
  if (!isCoppiceError(error)) return new ApiError(500, "the server failed", { cause: error });
  switch (error.code) {
    case "COPPICE_TASK_TOO_LONG":
      return new ApiError(400, error.message, { param, code: "context_length_exceeded", cause: error });
    case "COPPICE_TOKENIZER":
    case "COPPICE_USAGE":
      return new ApiError(400, error.message, { param, code: "invalid_value", cause: error });
    case "COPPICE_BACKEND_DISPOSED":
    case "COPPICE_ABORTED":
      return shuttingDown();
    default:
      return new ApiError(500, error.message, { code: error.code.toLowerCase(), cause: error });
  }
}

export function shuttingDown(): ApiError {
  return new ApiError(503, "the server is shutting down", { code: "shutting_down" });
}
