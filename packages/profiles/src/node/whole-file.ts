import { open, stat } from "node:fs/promises";
import { CoppiceError, type ErrorCode, throwIfAborted } from "@coppice/core";
import { writeFileAtomic } from "@coppice/search/node";

export interface WriteOptions {
  /** Replace a file of that name. @default false */
  readonly overwrite?: boolean;
  readonly signal?: AbortSignal;
}

/** @throws COPPICE_IO_EXISTS, COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE, COPPICE_ABORTED */
export async function writeWhole(
  path: string,
  data: string | Uint8Array,
  { overwrite = false, signal }: WriteOptions,
): Promise<void> {
  throwIfAborted(signal, `writing ${path}`);
  const there = await stat(path).then(
    () => true,
    () => false,
  );
  if (there && !overwrite) {
    throw new CoppiceError("COPPICE_IO_EXISTS", `${path} exists already and is not overwritten`, {
      hint: "choose another name or remove the file",
    });
  }
  await writeFileAtomic(path, data);
}

/**
 * @param limit most bytes; `code` is the error beyond it
 * @throws COPPICE_IO_READ, COPPICE_ABORTED
 */
export async function readWhole(
  path: string,
  limit: number,
  code: ErrorCode,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  throwIfAborted(signal, `reading ${path}`);
  try {
    await using file = await opened(path);
    const { size } = await file.handle.stat();
    if (size > limit) throw new CoppiceError(code, `${path} has ${size} bytes, at most ${limit} are read`);
    return await file.handle.readFile();
  } catch (cause) {
    if (cause instanceof CoppiceError) throw cause;
    throw new CoppiceError("COPPICE_IO_READ", `could not read ${path}: ${(cause as Error).message}`, {
      cause,
    });
  }
}

async function opened(path: string) {
  const handle = await open(path, "r");
  return { handle, [Symbol.asyncDispose]: () => handle.close() };
}
