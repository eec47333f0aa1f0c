import { randomBytes } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { CoppiceError } from "@coppice/core";

/**
 * Replaces a file so that a reader, or a machine that lost power, finds the old content or the new, never a part.
 * @throws COPPICE_IO_NO_SPACE, COPPICE_IO_WRITE; the old file is then untouched and nothing is left behind
 */
export async function writeFileAtomic(path: string, data: string | Uint8Array): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${process.pid}.${randomBytes(4).toString("hex")}.tmp`);
  try {
    const file = await open(temporary, "wx");
    try {
      await file.writeFile(data);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncFolder(folder);
  } catch (error) {
    await rm(temporary, { force: true });
    throw writeError(path, error);
  }
}

/** Makes new and renamed names of a folder durable, where the system can. */
export async function syncFolder(folder: string): Promise<void> {
  // Windows cannot open folders; there the journal of the file system orders renames.
  if (process.platform === "win32") return;
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** The error of Coppice for a failed write; errors that already are one pass through. */
export function writeError(path: string, cause: unknown): unknown {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  if (typeof code !== "string" || cause instanceof CoppiceError) return cause;
  const full = code === "ENOSPC" || code === "EDQUOT";
  return new CoppiceError(
    full ? "COPPICE_IO_NO_SPACE" : "COPPICE_IO_WRITE",
    full ? `no space is left to write ${path}` : `cannot write ${path}: ${(cause as Error).message}`,
    { cause, details: { path, system: code } },
  );
}

export function readError(path: string, cause: unknown): unknown {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  if (typeof code !== "string" || cause instanceof CoppiceError) return cause;
  return new CoppiceError("COPPICE_IO_READ", `cannot read ${path}: ${(cause as Error).message}`, {
    cause,
    details: { path, system: code },
  });
}
