import { randomBytes } from "node:crypto";
import { open, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { CoppiceError, throwIfAborted } from "../errors.js";
import { syncFolder } from "./file-systems.js";
import { writeError } from "./system-errors.js";

export interface WriteFileOptions {
  /** Replace a file of that name. @default true */
  readonly overwrite?: boolean;
  /**
   * Wait until the disk has it, so that it outlives a loss of power; false for what is of use to running processes alone.
   * @default true
   */
  readonly durable?: boolean;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Writes or replaces a file by way of another beside it: a reader, or a machine that lost power, finds the old content or the
 * new, never a part. The other file is removed when this fails; a process that is killed leaves it (`isUnfinishedFile`).
 * @throws COPPICE_IO_EXISTS, COPPICE_IO_NO_SPACE, COPPICE_IO_WRITE, COPPICE_ABORTED
 */
export async function writeFileAtomic(
  path: string,
  data: string | Uint8Array,
  { overwrite = true, durable = true, signal }: WriteFileOptions = {},
): Promise<void> {
  throwIfAborted(signal, `writing ${path}`);
  if (!overwrite && (await exists(path))) {
    throw new CoppiceError("COPPICE_IO_EXISTS", `${path} exists already and is not overwritten`, {
      hint: "choose another name or remove the file",
      details: { path },
    });
  }
  const folder = dirname(path);
  const unfinished = join(folder, `.${basename(path)}.${process.pid}.${randomBytes(4).toString("hex")}.tmp`);
  try {
    const file = await open(unfinished, "wx");
    try {
      await file.writeFile(data);
      if (durable) await file.sync();
    } finally {
      await file.close();
    }
    throwIfAborted(signal, `writing ${path}`);
    await rename(unfinished, path);
    if (durable) await syncFolder(folder);
  } catch (error) {
    await rm(unfinished, { force: true }).catch(() => {});
    throw writeError(path, error);
  }
}

/** Whether a name is that of a file which `writeFileAtomic` has not finished: a killed process leaves it. */
export function isUnfinishedFile(name: string): boolean {
  return /^\..+\.\d+\.[0-9a-f]{8}\.tmp$/s.test(name);
}

function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
