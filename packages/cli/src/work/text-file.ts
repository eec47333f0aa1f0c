import { readFile, stat } from "node:fs/promises";
import { CoppiceError, type ErrorCode } from "@coppice/core";

/** A whole text file of at most `limit` bytes. @throws COPPICE_USAGE, COPPICE_IO_READ, or `code` when it is too large */
export async function readTextFile(
  path: string,
  limit: number,
  code: ErrorCode,
  signal?: AbortSignal,
): Promise<string> {
  try {
    const { size } = await stat(path);
    if (size > limit) {
      throw new CoppiceError(code, `${path} has ${size} bytes, at most ${limit} are read`);
    }
    return await readFile(path, { encoding: "utf8", ...(signal && { signal }) });
  } catch (cause) {
    if (cause instanceof CoppiceError) throw cause;
    if (signal?.aborted)
      throw new CoppiceError("COPPICE_ABORTED", `stopped while reading ${path}`, { cause });
    const reason = (cause as NodeJS.ErrnoException).code;
    if (reason === "ENOENT") {
      throw new CoppiceError("COPPICE_USAGE", `${path} does not exist`, { cause, details: { path } });
    }
    throw new CoppiceError("COPPICE_IO_READ", `${path} cannot be read: ${(cause as Error).message}`, {
      cause,
      details: { path, reason },
    });
  }
}

/** A JSON file; `code` is the error for text that is no JSON. */
export async function readJsonFile(
  path: string,
  limit: number,
  code: ErrorCode,
  signal?: AbortSignal,
): Promise<unknown> {
  const text = await readTextFile(path, limit, code, signal);
  try {
    return JSON.parse(text) as unknown;
  } catch (cause) {
    throw new CoppiceError(code, `${path} is not JSON: ${(cause as Error).message}`, { cause });
  }
}
