import { mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import {
  freeBytes,
  isUnfinishedFile,
  readError,
  readFileBounded,
  writeError,
  writeFileAtomic,
} from "@coppice/core/node";
import type { WorkStore } from "../work-store.js";

/** Most bytes of a file that is read: each was one array of the process that wrote it, and Node reads no more at once. */
const mostBytes = 2 ** 31;

/**
 * A folder as the store of a layer-streamed pass, for one process at a time; it is made, with those above it, and rid of
 * files that a killed process did not finish.
 * @throws COPPICE_IO_WRITE, COPPICE_IO_READ
 */
export async function openWorkFolder(path: string): Promise<WorkStore> {
  const reading = <T>(where: string, work: Promise<T>) =>
    work.catch((error: unknown) => {
      throw readError(where, error);
    });
  const writing = <T>(where: string, work: Promise<T>) =>
    work.catch((error: unknown) => {
      throw writeError(where, error);
    });
  await writing(path, mkdir(path, { recursive: true }));
  const remove = (name: string) => writing(join(path, name), rm(join(path, name), { force: true }));
  const list = () => reading(path, readdir(path));
  for (const name of await list()) if (isUnfinishedFile(name)) await remove(name);
  return {
    label: path,
    list,
    remove,
    read: (name) => readFileBounded(join(path, name), { limit: mostBytes, code: "COPPICE_IO_READ" }),
    write: (name, bytes) => writeFileAtomic(join(path, name), bytes),
    freeBytes: () => reading(path, freeBytes(path)),
  };
}
