import { randomUUID } from "node:crypto";
import { open, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { CoppiceError, throwIfAborted } from "@coppice/core";
import type { CollectedStatistics } from "../collected-statistics.js";
import { decodeStatistics, encodeStatistics } from "../statistics-file.js";
import { statisticsLimit } from "../statistics-size.js";
import { replaceFile } from "./replace-file.js";
import { systemError } from "./system-error.js";

/** Largest statistics file that is read: the values, and room for the header with its sources. */
const fileLimit = statisticsLimit + 2 ** 26;

export interface WriteStatisticsOptions {
  /** Replace a file of that name. @default false */
  readonly overwrite?: boolean;
  readonly signal?: AbortSignal;
}

/**
 * Writes a statistics file, which appears complete or not at all.
 * @throws COPPICE_IO_EXISTS, COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE, COPPICE_ABORTED
 */
export async function writeStatistics(
  path: string,
  statistics: CollectedStatistics,
  options: WriteStatisticsOptions = {},
): Promise<void> {
  const { overwrite = false, signal } = options;
  throwIfAborted(signal, `writing ${path}`);
  if (!overwrite && (await exists(path))) {
    throw new CoppiceError("COPPICE_IO_EXISTS", `${path} exists already and is not overwritten`, {
      hint: "choose another name or remove the file",
    });
  }
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID()}.tmp`);
  try {
    await replaceFile(path, temporary, encodeStatistics(statistics), signal);
  } catch (error) {
    throw systemError(error, `could not write ${path}`, "COPPICE_IO_WRITE");
  }
}

/**
 * Reads a statistics file.
 * @throws COPPICE_STATS_FORMAT, COPPICE_IO_READ, COPPICE_ABORTED
 */
export async function readStatistics(
  path: string,
  options: { signal?: AbortSignal } = {},
): Promise<CollectedStatistics> {
  throwIfAborted(options.signal, `reading ${path}`);
  let bytes: Uint8Array;
  try {
    const file = await open(path, "r");
    try {
      const { size } = await file.stat();
      if (size > fileLimit) {
        throw new CoppiceError(
          "COPPICE_STATS_FORMAT",
          `${path} has ${size} bytes; a statistics file has at most ${fileLimit}`,
        );
      }
      bytes = await file.readFile();
    } finally {
      await file.close();
    }
  } catch (error) {
    throw systemError(error, `could not read ${path}`, "COPPICE_IO_READ");
  }
  throwIfAborted(options.signal, `reading ${path}`);
  return decodeStatistics(bytes, basename(path));
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
