import { CoppiceError, type ErrorCode, isCoppiceError } from "@coppice/core";
import { readTextBounded } from "@coppice/core/node";

/** A whole text file of at most `limit` bytes. @throws COPPICE_USAGE, COPPICE_IO_READ, or `code` when it is too large */
export async function readTextFile(
  path: string,
  limit: number,
  code: ErrorCode,
  signal?: AbortSignal,
): Promise<string> {
  try {
    return await readTextBounded(path, { limit, code, signal });
  } catch (cause) {
    if (isCoppiceError(cause, "COPPICE_IO_READ") && cause.details.system === "ENOENT") {
      throw new CoppiceError("COPPICE_USAGE", `${path} does not exist`, { cause, details: { path } });
    }
    throw cause;
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
