import { type FileHandle, open } from "node:fs/promises";
import type { ErrorCode } from "../error-codes.js";
import { CoppiceError, throwIfAborted } from "../errors.js";
import { readError } from "./system-errors.js";

export interface ReadFileOptions {
  /** Most bytes; a file with more is refused before it takes memory. */
  readonly limit: number;
  /** Of the error for a file with more. @default "COPPICE_FORMAT_LIMIT" */
  readonly code?: ErrorCode;
  readonly signal?: AbortSignal | undefined;
}

/** Most bytes of one read, so that a stop is noticed between two of them. */
const mostAtOnce = 2 ** 24;
/** Bytes of the first read where the size is not known, as of a pipe. */
const firstRead = 2 ** 16;

/**
 * The bytes of a whole file. The limit holds for what is read, whatever size the system tells: pipes have none, and a file may
 * grow.
 * @throws COPPICE_IO_READ, COPPICE_ABORTED, or `code`
 */
export async function readFileBounded(path: string, options: ReadFileOptions): Promise<Uint8Array> {
  throwIfAborted(options.signal, `reading ${path}`);
  const file = await open(path, "r").catch((error: unknown) => {
    throw readError(path, error);
  });
  try {
    return await readHandleBounded(file, path, options);
  } finally {
    await file.close();
  }
}

/** As `readFileBounded`, of a file that was just opened and stays open. */
export async function readHandleBounded(
  file: FileHandle,
  path: string,
  options: ReadFileOptions,
): Promise<Uint8Array> {
  const { limit, code = "COPPICE_FORMAT_LIMIT", signal } = options;
  const tooLarge = (size: string) =>
    new CoppiceError(code, `${path} has ${size} bytes, at most ${limit} are read`, {
      details: { path, limit },
    });
  try {
    const { size } = await file.stat();
    if (size > limit) throw tooLarge(`${size}`);
    // One byte more than expected tells its end.
    let bytes = new Uint8Array(Math.max(size, Math.min(firstRead, limit)) + 1);
    let done = 0;
    for (;;) {
      done = await fill(file, bytes, done, path, signal);
      if (done > limit) throw tooLarge(`more than ${limit}`);
      if (done < bytes.length) return bytes.subarray(0, done);
      const larger = new Uint8Array(Math.min(2 * bytes.length, limit + 1));
      larger.set(bytes);
      bytes = larger;
    }
  } catch (error) {
    throw readError(path, error);
  }
}

/** As `readFileBounded`, decoded as UTF-8. */
export async function readTextBounded(path: string, options: ReadFileOptions): Promise<string> {
  return new TextDecoder().decode(await readFileBounded(path, options));
}

/** Reads on until the end or until `bytes` is full; returns how many it has then. */
async function fill(
  file: FileHandle,
  bytes: Uint8Array,
  from: number,
  path: string,
  signal: AbortSignal | undefined,
): Promise<number> {
  let done = from;
  while (done < bytes.length) {
    throwIfAborted(signal, `reading ${path}`);
    // Without a position, which pipes do not have.
    const { bytesRead } = await file.read(bytes, done, Math.min(bytes.length - done, mostAtOnce), null);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}
