import { open, rename, rm } from "node:fs/promises";
import { throwIfAborted } from "@coppice/core";

/** Writes a file by way of another beside it, which must not exist: it appears complete and durable, or not at all. */
export async function replaceFile(
  path: string,
  temporary: string,
  bytes: Uint8Array,
  signal?: AbortSignal,
): Promise<void> {
  try {
    const file = await open(temporary, "wx");
    try {
      await file.writeFile(bytes);
      await file.sync();
    } finally {
      await file.close();
    }
    throwIfAborted(signal, `writing ${path}`);
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw error;
  }
}
