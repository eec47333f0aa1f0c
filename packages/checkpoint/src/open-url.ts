import { CoppiceError, throwIfAborted } from "@coppice/core";
import {
  type ByteSource,
  type CheckpointFolder,
  checkFileName,
  type FolderEntry,
  missingFile,
  truncatedFile,
} from "./folder.js";

/** Bytes of one request; tensors of a small model come many at a time. */
const blockBytes = 4 * 1024 * 1024;
/** Blocks of a file that are kept, latest last: a layer's tensors do not lie in the order in which they are read. */
const keptBlocks = 4;

export interface OpenUrlOptions {
  /** Default: the global `fetch`. Pass one of your own for caches, headers or tests. */
  readonly fetch?: (
    url: string,
    init: { readonly headers: Readonly<Record<string, string>>; readonly signal?: AbortSignal },
  ) => Promise<Response>;
  /** Called when bytes have arrived; those that are asked for again count again. */
  readonly onProgress?: (progress: { readonly file: string; readonly loaded: number }) => void;
}

/**
 * The files of a checkpoint behind a URL, for browsers, read in ranges: never a whole file at once.
 * @param base URL of the folder, with or without a slash at its end
 * @param files what the folder holds, which servers do not tell
 */
export function openUrl(
  base: string,
  files: readonly FolderEntry[],
  options: OpenUrlOptions = {},
): CheckpointFolder {
  const root = base.endsWith("/") ? base : `${base}/`;
  const sizes = new Map(files.map(({ name, size }) => [name, size]));
  return {
    label: base,
    list: async () => files,
    async open(name) {
      checkFileName(name, base);
      const size = sizes.get(name);
      if (size === undefined) throw missingFile(name, base);
      return rangeSource(root + encodeURIComponent(name), name, size, options);
    },
    close: async () => {},
  };
}

function rangeSource(url: string, name: string, size: number, options: OpenUrlOptions): ByteSource {
  const blocks = new Map<number, Promise<Uint8Array>>();
  let loaded = 0;
  const block = (index: number, signal: AbortSignal | undefined): Promise<Uint8Array> => {
    const known = blocks.get(index);
    blocks.delete(index);
    const bytes =
      known ??
      fetchRange(url, index * blockBytes, Math.min(size, (index + 1) * blockBytes), options, signal).then(
        (found) => {
          loaded += found.length;
          options.onProgress?.({ file: name, loaded });
          return found;
        },
      );
    blocks.set(index, bytes);
    // One that did not come is asked for again next time.
    if (!known) bytes.catch(() => blocks.get(index) === bytes && blocks.delete(index));
    const [oldest] = blocks.keys();
    if (blocks.size > keptBlocks && oldest !== undefined) blocks.delete(oldest);
    return bytes;
  };
  return {
    size,
    async read(offset, into, { signal } = {}) {
      throwIfAborted(signal, `reading ${name}`);
      if (offset + into.length > size) throw truncatedFile(name, offset + into.length, size);
      for (let at = 0; at < into.length; ) {
        const index = Math.floor((offset + at) / blockBytes);
        const start = offset + at - index * blockBytes;
        const part = (await block(index, signal)).subarray(start, start + into.length - at);
        into.set(part, at);
        at += part.length;
      }
    },
    async close() {
      blocks.clear();
    },
  };
}

/** Bytes `from` to `to`, without `to` itself. */
async function fetchRange(
  url: string,
  from: number,
  to: number,
  options: OpenUrlOptions,
  signal: AbortSignal | undefined,
): Promise<Uint8Array> {
  const get = options.fetch ?? ((input, init) => fetch(input, init));
  let response: Response;
  try {
    response = await get(url, {
      headers: { range: `bytes=${from}-${to - 1}` },
      ...(signal && { signal }),
    });
  } catch (cause) {
    throwIfAborted(signal, `reading ${url}`);
    throw new CoppiceError("COPPICE_IO_READ", `${url} cannot be fetched: ${String(cause)}`, {
      cause,
      retryable: true,
    });
  }
  if (response.status === 404) throw missingFile(url.slice(url.lastIndexOf("/") + 1), url);
  if (response.status !== 206) {
    await response.body?.cancel();
    throw new CoppiceError(
      "COPPICE_IO_READ",
      `${url} answers with status ${response.status} to a request for bytes ${from} to ${to}, expected 206`,
      {
        retryable: response.status >= 500,
        ...(response.ok && { hint: "serve it with a server that knows range requests" }),
      },
    );
  }
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes.length !== to - from) throw truncatedFile(url, to, from + bytes.length);
  return bytes;
}
