import { mkdir, readdir, readFile, rm, statfs } from "node:fs/promises";
import { join } from "node:path";
import type { WorkStore } from "../work-store.js";
import { replaceFile } from "./replace-file.js";
import { systemError } from "./system-error.js";

/** The process is in their names too: the worker of a killed one may end a moment later. */
const unfinished = ".work-tmp";

/**
 * A folder as the store of a layer-streamed pass, for one process at a time; it is made, with those above it, and rid of
 * files that a killed process did not finish.
 * @throws COPPICE_IO_WRITE, COPPICE_IO_READ
 */
export async function openWorkFolder(path: string): Promise<WorkStore> {
  const reading = <T>(what: string, work: () => Promise<T>) =>
    work().catch((error: unknown) => {
      throw systemError(error, `could not ${what}`, "COPPICE_IO_READ");
    });
  const writing = <T>(what: string, work: () => Promise<T>) =>
    work().catch((error: unknown) => {
      throw systemError(error, `could not ${what}`, "COPPICE_IO_WRITE");
    });
  await writing(`make ${path}`, () => mkdir(path, { recursive: true }));
  const remove = (name: string) =>
    writing(`remove ${join(path, name)}`, () => rm(join(path, name), { force: true }));
  const list = () => reading(`list ${path}`, () => readdir(path));
  for (const name of await list()) if (name.endsWith(unfinished)) await remove(name);
  return {
    label: path,
    list,
    remove,
    read: (name) => reading(`read ${join(path, name)}`, () => readFile(join(path, name))),
    write: (name, bytes) =>
      writing(`write ${join(path, name)}`, () =>
        replaceFile(join(path, name), join(path, `.${name}.${process.pid}${unfinished}`), bytes),
      ),
    freeBytes: () =>
      reading(`ask for the room in ${path}`, async () => {
        const { bavail, bsize } = await statfs(path);
        // Some network file systems answer 0 blocks altogether when they do not know.
        return bsize > 0 ? bavail * bsize : undefined;
      }),
  };
}
