import { constants } from "node:fs";
import { lstat, mkdir, open, readdir, rename, rm, rmdir } from "node:fs/promises";
import { freeBytes, syncFolder } from "@coppice/core/node";

/** A file that is written by position. */
export interface WritableFile {
  write(bytes: Uint8Array, position: number): Promise<number>;
  sync(): Promise<void>;
  close(): Promise<void>;
}

/** The calls that writing a checkpoint makes, in one place, so that tests can let each of them fail. */
export interface FileSystem {
  exists(path: string): Promise<boolean>;
  /** Names of a folder's entries. */
  list(path: string): Promise<string[]>;
  /** Bytes that a file system has left for this user, or undefined where it cannot tell. */
  freeBytes(path: string): Promise<number | undefined>;
  /** Creates a folder and those above it; returns the topmost one that it created. */
  makeFolders(path: string): Promise<string | undefined>;
  makeFolder(path: string): Promise<void>;
  /** Creates a file that must not exist. */
  create(path: string): Promise<WritableFile>;
  /** Makes the names in a folder durable. */
  syncFolder(path: string): Promise<void>;
  rename(from: string, to: string): Promise<void>;
  removeTree(path: string): Promise<void>;
  /** Removes a folder that must be empty. */
  removeFolder(path: string): Promise<void>;
}

export const nodeFileSystem: FileSystem = {
  exists: (path) =>
    lstat(path).then(
      () => true,
      (error: NodeJS.ErrnoException) => {
        if (error.code === "ENOENT") return false;
        throw error;
      },
    ),
  list: (path) => readdir(path),
  freeBytes,
  makeFolders: (path) => mkdir(path, { recursive: true }),
  makeFolder: async (path) => {
    await mkdir(path);
  },
  create: async (path) => {
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL;
    const handle = await open(path, flags, 0o666);
    return {
      write: async (bytes, position) => (await handle.write(bytes, 0, bytes.length, position)).bytesWritten,
      sync: () => handle.sync(),
      close: () => handle.close(),
    };
  },
  syncFolder,
  rename,
  removeTree: (path) => rm(path, { recursive: true, force: true }),
  removeFolder: rmdir,
};
