import { dirname, join, resolve } from "node:path";
import { CoppiceError } from "@coppice/core";
import { writeError } from "@coppice/core/node";
import { checkFileName } from "../folder.js";
import {
  type ByteSink,
  type CheckpointTarget,
  type TargetTransaction,
  targetExists,
} from "../output/target.js";
import { type FileSystem, nodeFileSystem } from "./file-system.js";
import { partialName, removeStalePartials } from "./stale-partials.js";

/** Room that a file system needs beyond the bytes of the files: names, and the last block of each. */
const spareRoom = 1.01;

/**
 * A folder on disk, which must not exist; missing folders above it are created. All files are written and synced in a
 * hidden folder beside it (`.<name>.partial-<computer>-<process>-<random>`), which is renamed at the end: the folder is
 * complete or absent, even when the process is killed or the computer loses power. A killed process leaves the hidden
 * folder, which may be deleted, and is when the same target is written again on that computer; every other failure
 * removes it.
 */
export function folderTarget(path: string): CheckpointTarget {
  return createFolderTarget(path, nodeFileSystem);
}

export function createFolderTarget(path: string, fs: FileSystem): CheckpointTarget {
  return {
    label: path,
    begin: (bytes) => new FolderTransaction(path, bytes, fs).begin(),
  };
}

class FolderTransaction implements TargetTransaction {
  readonly #label: string;
  readonly #bytes: number;
  readonly #fs: FileSystem;
  readonly #target: string;
  readonly #parent: string;
  readonly #partial: string;
  /** Topmost folder above the target that did not exist before. */
  #created: string | undefined;
  /** Folders inside of the hidden one. */
  readonly #inner = new Set<string>();

  constructor(label: string, bytes: number, fs: FileSystem) {
    this.#label = label;
    this.#bytes = bytes;
    this.#fs = fs;
    this.#target = resolve(label);
    this.#parent = dirname(this.#target);
    this.#partial = join(this.#parent, partialName(this.#target));
  }

  async begin(): Promise<this> {
    try {
      if (await this.#fs.exists(this.#target)) throw targetExists(this.#label);
      this.#created = await this.#fs.makeFolders(this.#parent);
      await removeStalePartials(this.#target, this.#fs);
      const free = await this.#fs.freeBytes(this.#parent);
      if (free !== undefined && free < this.#bytes * spareRoom) throw this.#noSpace(free);
      await this.#fs.makeFolder(this.#partial);
      return this;
    } catch (error) {
      await this.rollback();
      throw await this.#explain(error);
    }
  }

  async create(name: string, bytes: number): Promise<ByteSink> {
    const parts = name.split("/");
    for (const part of parts) checkFileName(part, "the output checkpoint");
    const folder = join(this.#partial, ...parts.slice(0, -1));
    const file = await this.#try(async () => {
      if (parts.length > 1 && !this.#inner.has(folder)) {
        await this.#fs.makeFolders(folder);
        this.#inner.add(folder);
      }
      return this.#fs.create(join(this.#partial, ...parts));
    });
    let written = 0;
    return {
      write: (offset, part) =>
        this.#try(async () => {
          for (let done = 0; done < part.length; ) {
            const count = await file.write(part.subarray(done), offset + done);
            // The system reports a disk that is almost full by writing less, and the reason with the next call.
            done += count;
            written += count;
          }
        }),
      close: () =>
        this.#try(async () => {
          try {
            if (written === bytes) await file.sync();
          } finally {
            await file.close();
          }
        }),
    };
  }

  async commit(): Promise<void> {
    await this.#try(async () => {
      for (const folder of [...this.#inner, this.#partial]) await this.#fs.syncFolder(folder);
      // A folder that appeared meanwhile is only replaced by rename when it is empty.
      if (await this.#fs.exists(this.#target)) throw targetExists(this.#label);
      await this.#fs.rename(this.#partial, this.#target);
      await this.#fs.syncFolder(this.#parent);
    });
  }

  async rollback(): Promise<void> {
    await this.#fs.removeTree(this.#partial).catch(() => {});
    if (this.#created === undefined) return;
    // From the parent upwards, as far as this created folders and nobody put anything into them.
    for (let folder = this.#parent; folder.length >= this.#created.length; folder = dirname(folder)) {
      if (
        !(await this.#fs.removeFolder(folder).then(
          () => true,
          () => false,
        ))
      )
        return;
    }
  }

  async #try<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw await this.#explain(error);
    }
  }

  async #explain(error: unknown): Promise<unknown> {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOSPC" || code === "EDQUOT") {
      return this.#noSpace(await this.#fs.freeBytes(this.#parent).catch(() => undefined), error);
    }
    if (code === "EEXIST" || code === "ENOTEMPTY") return targetExists(this.#label);
    return writeError(this.#label, error);
  }

  #noSpace(free: number | undefined, cause?: unknown): CoppiceError {
    const room = free === undefined ? "" : `, ${free} bytes are free`;
    return new CoppiceError("COPPICE_IO_NO_SPACE", `${this.#label} needs ${this.#bytes} bytes${room}`, {
      hint: "free some space, or give an output folder on another disk",
      details: { path: this.#label, needed: this.#bytes, free: free ?? null },
      ...(cause === undefined ? {} : { cause }),
    });
  }
}
