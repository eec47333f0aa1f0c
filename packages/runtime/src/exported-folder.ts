import { CoppiceError } from "@coppice/core";

/** A graph as ONNX Runtime takes it. */
export interface GraphSource {
  /** A path, beside which external data files lie, or the file's bytes. */
  readonly graph: string | Uint8Array;
  /** External data files under the names that the graph has for them, where `graph` is no path. */
  readonly externalData: readonly { readonly path: string; readonly data: Uint8Array }[];
}

/** The files of an exported model: `urlFolder`, `openExportedFolder` of `@coppice/runtime/node`, or a cache of one's own. */
export interface ExportedFolder {
  /** How messages call it, such as its path. */
  readonly label: string;
  /**
   * A text file directly in the folder, or undefined when it is not there.
   * @throws COPPICE_FORMAT_LIMIT when it has more than `limit` bytes
   */
  text(name: string, limit: number): Promise<string | undefined>;
  /** Names of the files in the subfolder `onnx`; undefined where files cannot be listed. */
  list(): Promise<readonly string[] | undefined>;
  /**
   * A graph of the subfolder `onnx`.
   * @param externalData names of its external data files, as far as the configuration tells
   * @throws COPPICE_FORMAT_MISSING_FILE
   */
  graph(name: string, externalData: readonly string[]): Promise<GraphSource>;
}

export interface UrlFolderOptions {
  /** Default: the global `fetch`. Pass one of your own for caches, headers or tests. */
  readonly fetch?: (url: string, init: { readonly signal?: AbortSignal }) => Promise<Response>;
  /** Called while graph and weights arrive; `total` where the server says it. */
  readonly onProgress?: (progress: {
    readonly file: string;
    readonly loaded: number;
    readonly total: number | undefined;
  }) => void;
  readonly signal?: AbortSignal;
}

/**
 * An exported folder behind a URL, for browsers.
 * @param base URL of the folder, with or without a slash at its end
 */
export function urlFolder(base: string, options: UrlFolderOptions = {}): ExportedFolder {
  const { onProgress, signal } = options;
  const get = options.fetch ?? ((url, init) => fetch(url, init));
  const root = base.endsWith("/") ? base : `${base}/`;
  const request = async (name: string): Promise<Response | undefined> => {
    let response: Response;
    try {
      response = await get(root + name, signal ? { signal } : {});
    } catch (cause) {
      throw new CoppiceError("COPPICE_IO_READ", `${root}${name} cannot be fetched: ${messageOf(cause)}`, {
        cause,
        retryable: true,
      });
    }
    if (response.status === 404) return undefined;
    if (!response.ok) {
      throw new CoppiceError(
        "COPPICE_IO_READ",
        `${root}${name} answers with status ${response.status}, expected 200`,
        { retryable: response.status >= 500 },
      );
    }
    return response;
  };
  const bytes = async (name: string): Promise<Uint8Array> => {
    const response = await request(name);
    if (!response) throw missingFile(name, root);
    return readBody(response, (loaded, total) => onProgress?.({ file: name, loaded, total }));
  };
  return {
    label: base,
    async text(name, limit) {
      const response = await request(name);
      if (!response) return undefined;
      const content = await readBody(response, (loaded) => checkSize(name, loaded, limit));
      return new TextDecoder().decode(content);
    },
    list: async () => undefined,
    async graph(name, externalData) {
      const graph = await bytes(`onnx/${name}`);
      const data: { path: string; data: Uint8Array }[] = [];
      // One after the other, so that a slow connection shows progress that means something.
      for (const path of externalData) data.push({ path, data: await bytes(`onnx/${path}`) });
      return { graph, externalData: data };
    },
  };
}

/** @throws COPPICE_FORMAT_LIMIT */
export function checkSize(name: string, size: number, limit: number): void {
  if (size <= limit) return;
  throw new CoppiceError(
    "COPPICE_FORMAT_LIMIT",
    `${name} has ${size} bytes or more, at most ${limit} are read`,
    {
      details: { file: name, size, limit },
    },
  );
}

export function missingFile(name: string, folder: string): CoppiceError {
  return new CoppiceError("COPPICE_FORMAT_MISSING_FILE", `${name} is not in ${folder}`, {
    hint: "expected a folder that `coppice export --format onnx` wrote, copied as a whole",
    details: { file: name, folder },
  });
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The body of a response, in memory once where its length is known. */
async function readBody(
  response: Response,
  onLoaded: (loaded: number, total: number | undefined) => void,
): Promise<Uint8Array> {
  const header = response.headers.get("content-length");
  // The length counts compressed bytes where there is an encoding.
  const total = header === null || response.headers.has("content-encoding") ? undefined : Number(header);
  const parts: Uint8Array[] = [];
  let loaded = 0;
  const whole = total === undefined || !Number.isSafeInteger(total) ? undefined : new Uint8Array(total);
  const reader = response.body?.getReader();
  for (;;) {
    const chunk = await reader?.read();
    if (!chunk || chunk.done) break;
    if (whole && loaded + chunk.value.length <= whole.length) whole.set(chunk.value, loaded);
    else parts.push(chunk.value);
    loaded += chunk.value.length;
    onLoaded(loaded, total);
  }
  if (whole && loaded === whole.length) return whole;
  if (whole) {
    throw new CoppiceError(
      "COPPICE_FORMAT_TRUNCATED",
      `${response.url} has ${loaded} bytes, its header promises ${whole.length}`,
      { retryable: true },
    );
  }
  const joined = new Uint8Array(loaded);
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}
