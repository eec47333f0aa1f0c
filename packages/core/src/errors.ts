import { type ErrorCode, errorCodes } from "./error-codes.js";

const brand = Symbol.for("coppice.error");

export interface CoppiceErrorOptions {
  /** What the reader can do about it, one sentence. */
  hint?: string;
  /** The values seen and expected, for programs. Must survive JSON. */
  details?: Readonly<Record<string, unknown>>;
  cause?: unknown;
  /** True when the same call may succeed later (a busy file, a lost worker). Default false. */
  retryable?: boolean;
}

/** An error with a stable code. Its message says what happened, the value seen and what was expected. */
export class CoppiceError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly details: Readonly<Record<string, unknown>>;
  readonly retryable: boolean;

  constructor(code: ErrorCode, message: string, options: CoppiceErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "CoppiceError";
    this.code = code;
    this.hint = options.hint;
    this.details = options.details ?? {};
    this.retryable = options.retryable ?? false;
    Object.defineProperty(this, brand, { value: true });
  }

  /** Exit code of the command line for this error. */
  get exitCode(): number {
    return errorCodes[this.code].exit;
  }

  /** Plain form that crosses thread and process borders; `reviveError` turns it back. */
  toJSON(): SerializedError {
    return {
      code: this.code,
      message: this.message,
      details: this.details,
      retryable: this.retryable,
      ...(this.hint === undefined ? {} : { hint: this.hint }),
    };
  }
}

export interface SerializedError {
  code: ErrorCode;
  message: string;
  details: Readonly<Record<string, unknown>>;
  retryable: boolean;
  hint?: string;
}

/** Recognises a CoppiceError by its brand, so that two installed copies of core still agree. */
export function isCoppiceError(error: unknown, code?: ErrorCode): error is CoppiceError {
  if (typeof error !== "object" || error === null || !(brand in error)) return false;
  return code === undefined || (error as { code?: unknown }).code === code;
}

/** The inverse of `CoppiceError.toJSON`. */
export function reviveError(data: SerializedError): CoppiceError {
  const { code, message, hint, details, retryable } = data;
  return new CoppiceError(code, message, { details, retryable, ...(hint === undefined ? {} : { hint }) });
}

/** Throws `COPPICE_ABORTED` when the signal is already aborted. Call it between units of work. */
export function throwIfAborted(signal: AbortSignal | undefined, when: string): void {
  if (signal?.aborted) throw abortedError(signal, when);
}

export function abortedError(signal: AbortSignal | undefined, when: string): CoppiceError {
  return new CoppiceError("COPPICE_ABORTED", `stopped while ${when}`, { cause: signal?.reason });
}
