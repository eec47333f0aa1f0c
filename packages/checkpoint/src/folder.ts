import { CoppiceError, throwIfAborted } from "@coppice/core";

/** A file that can be read by byte range. */
export interface ByteSource {
  /** Bytes of the file. */
  readonly size: number;
  /**
   * Fills `into` with the bytes from `offset` on.
   * @throws COPPICE_FORMAT_TRUNCATED when the file ends before, COPPICE_IO_READ, COPPICE_ABORTED
   */
  read(offset: number, into: Uint8Array, options?: { signal?: AbortSignal }): Promise<void>;
  close(): Promise<void>;
}

export interface FolderEntry {
  readonly name: string;
  readonly size: number;
}

/**
 * The files of one checkpoint: a folder on disk (`openFolder` of `@coppice/checkpoint/node`), in memory
 * (`memoryFolder`), or anything else that can list and read.
 */
export interface CheckpointFolder {
  /** How messages call it, such as its path. */
  readonly label: string;
  /** The plain files that lie directly in the folder. */
  list(): Promise<readonly FolderEntry[]>;
  /**
   * Opens one of them.
   * @throws COPPICE_FORMAT_PATH, COPPICE_FORMAT_MISSING_FILE, COPPICE_IO_READ
   */
  open(name: string): Promise<ByteSource>;
  close(): Promise<void>;
}

/** A checkpoint whose files are byte arrays: for tests, and for pages that hold what a person dropped on them. */
export function memoryFolder(
  files: ReadonlyMap<string, Uint8Array> | Readonly<Record<string, Uint8Array>>,
  label = "memory",
): CheckpointFolder {
  const entries = new Map(files instanceof Map ? files : Object.entries(files as Record<string, Uint8Array>));
  return {
    label,
    list: async () => [...entries].map(([name, bytes]) => ({ name, size: bytes.length })),
    open: async (name) => {
      checkFileName(name, label);
      const bytes = entries.get(name);
      if (!bytes) throw missingFile(name, label);
      return {
        size: bytes.length,
        read: async (offset, into, options) => {
          throwIfAborted(options?.signal, `reading ${name}`);
          if (offset + into.length > bytes.length) {
            throw truncatedFile(name, offset + into.length, bytes.length);
          }
          into.set(bytes.subarray(offset, offset + into.length));
        },
        close: async () => {},
      };
    },
    close: async () => {},
  };
}

/**
 * Refuses names that could mean a file elsewhere, on any operating system: anything but a plain file name.
 * @param where what named the file, for the message
 * @throws COPPICE_FORMAT_PATH
 */
export function checkFileName(name: string, where: string): void {
  const fault =
    name === "" || name === "." || name === ".."
      ? "is no file name"
      : name.includes("\0")
        ? "holds a NUL character"
        : /[/\\]/.test(name)
          ? "points into another folder"
          : /^[A-Za-z]:/.test(name)
            ? "names a drive"
            : undefined;
  if (fault === undefined) return;
  throw new CoppiceError(
    "COPPICE_FORMAT_PATH",
    `${where} names the file ${JSON.stringify(name.slice(0, 200))}, which ${fault}; expected a plain file name`,
    { details: { name: name.slice(0, 200) } },
  );
}

export function missingFile(name: string, folder: string): CoppiceError {
  return new CoppiceError("COPPICE_FORMAT_MISSING_FILE", `${name} is not in ${folder}`, {
    hint: "download or copy the whole checkpoint folder",
    details: { file: name, folder },
  });
}

export function truncatedFile(name: string, expected: number, size: number): CoppiceError {
  return new CoppiceError(
    "COPPICE_FORMAT_TRUNCATED",
    `${name} has ${size} bytes, expected at least ${expected}`,
    { hint: "the file was probably not downloaded completely", details: { file: name, size, expected } },
  );
}

/**
 * A whole small file.
 * @throws COPPICE_FORMAT_LIMIT when it has more than `limit` bytes
 */
export async function readSmallFile(
  folder: CheckpointFolder,
  name: string,
  limit: number,
  signal?: AbortSignal,
): Promise<Uint8Array> {
  const source = await folder.open(name);
  try {
    if (source.size > limit) {
      throw new CoppiceError(
        "COPPICE_FORMAT_LIMIT",
        `${name} has ${source.size} bytes, at most ${limit} are read`,
        { details: { file: name, size: source.size, limit } },
      );
    }
    const bytes = new Uint8Array(source.size);
    await source.read(0, bytes, signal ? { signal } : {});
    return bytes;
  } finally {
    await source.close();
  }
}
