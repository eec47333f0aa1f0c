import { open, statfs } from "node:fs/promises";

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

/** Bytes that the file system of a folder has left for this user; undefined where it cannot tell. */
export async function freeBytes(folder: string): Promise<number | undefined> {
  const { bavail, bsize } = await statfs(folder);
  // Some network file systems answer 0 blocks altogether when they do not know.
  return bsize > 0 ? bavail * bsize : undefined;
}
