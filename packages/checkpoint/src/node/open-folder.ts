import { constants } from "node:fs";
import { type FileHandle, open, readdir, realpath, stat } from "node:fs/promises";
import { basename, dirname, join, relative, sep } from "node:path";
import { CoppiceError, throwIfAborted } from "@coppice/core";
import {
  type ByteSource,
  type CheckpointFolder,
  checkFileName,
  type FolderEntry,
  missingFile,
  truncatedFile,
} from "../folder.js";
import { defaultLimits } from "../limits.js";

/**
 * Opens a folder on disk. Only plain files that lie directly in it are seen.
 *
 * A symbolic link among them is followed when it stays inside the folder, or when the folder is a snapshot of the
 * Hugging Face cache (`<repo>/snapshots/<revision>`) and the link leads into that repository's `blobs`. Any other link
 * is refused when it is opened: files are copied into output checkpoints, and a downloaded link must not carry a file
 * of this computer along.
 * @throws COPPICE_FORMAT_MISSING_FILE when there is no such folder, COPPICE_IO_READ, COPPICE_ABORTED
 */
export async function openFolder(
  path: string,
  options: { signal?: AbortSignal } = {},
): Promise<CheckpointFolder> {
  throwIfAborted(options.signal, `opening ${path}`);
  const root = await realpath(path).catch((cause) => {
    throw ioError(cause, path, path);
  });
  if (!(await stat(root)).isDirectory()) {
    throw new CoppiceError("COPPICE_FORMAT_MISSING_FILE", `${path} is a file, expected a checkpoint folder`, {
      hint: "give the folder that holds config.json",
    });
  }
  throwIfAborted(options.signal, `opening ${path}`);
  return {
    label: path,
    list: () => listFiles(root, path),
    open: (name) => openFile(root, path, name),
    close: async () => {},
  };
}

async function listFiles(root: string, label: string): Promise<FolderEntry[]> {
  try {
    const names = await readdir(root);
    if (names.length > defaultLimits.folderEntries) {
      throw new CoppiceError(
        "COPPICE_FORMAT_LIMIT",
        `${label} has ${names.length} entries, at most ${defaultLimits.folderEntries} are read`,
      );
    }
    const entries: FolderEntry[] = [];
    for (const name of names.sort()) {
      // A link to nowhere is what an interrupted download leaves: not a file.
      const info = await stat(join(root, name)).catch(() => undefined);
      if (info?.isFile()) entries.push({ name, size: info.size });
    }
    return entries;
  } catch (cause) {
    throw ioError(cause, label, label);
  }
}

async function openFile(root: string, label: string, name: string): Promise<ByteSource> {
  checkFileName(name, label);
  let handle: FileHandle | undefined;
  try {
    const real = await realpath(join(root, name));
    if (!isAllowed(root, real)) {
      throw new CoppiceError(
        "COPPICE_FORMAT_PATH",
        `${name} in ${label} is a symbolic link to ${real}, outside of the folder`,
        { hint: "copy the file into the folder", details: { name } },
      );
    }
    // Windows has no O_NOFOLLOW.
    const opened = await open(real, constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0));
    handle = opened;
    const info = await opened.stat();
    if (!info.isFile()) {
      throw new CoppiceError("COPPICE_FORMAT_MISSING_FILE", `${name} in ${label} is no plain file`);
    }
    return fileSource(opened, name, info.size);
  } catch (cause) {
    await handle?.close().catch(() => {});
    throw ioError(cause, name, label);
  }
}

function fileSource(handle: FileHandle, name: string, size: number): ByteSource {
  return {
    size,
    read: async (offset, into, options) => {
      for (let done = 0; done < into.length; ) {
        throwIfAborted(options?.signal, `reading ${name}`);
        const { bytesRead } = await handle
          .read(into, done, into.length - done, offset + done)
          .catch((cause) => {
            throw ioError(cause, name, name);
          });
        if (bytesRead === 0) throw truncatedFile(name, offset + into.length, offset + done);
        done += bytesRead;
      }
    },
    close: () => handle.close(),
  };
}

function isAllowed(root: string, real: string): boolean {
  const isInside = (folder: string) => {
    const way = relative(folder, real);
    return way !== "" && way !== ".." && !way.startsWith(`..${sep}`) && join(folder, way) === real;
  };
  if (isInside(root)) return true;
  const snapshots = dirname(root);
  return basename(snapshots) === "snapshots" && isInside(join(dirname(snapshots), "blobs"));
}

/** Turns an error of the operating system into one with a code; others pass. */
function ioError(cause: unknown, name: string, label: string): unknown {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  if (cause instanceof CoppiceError || typeof code !== "string") return cause;
  if (code === "ENOENT" || code === "ENOTDIR") {
    return name === label
      ? new CoppiceError("COPPICE_FORMAT_MISSING_FILE", `there is no folder ${label}`, { cause })
      : missingFile(name, label);
  }
  return new CoppiceError(
    "COPPICE_IO_READ",
    `${name === label ? name : `${name} in ${label}`} cannot be read: ${(cause as Error).message}`,
    { cause, details: { name, code } },
  );
}
