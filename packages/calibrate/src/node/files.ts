import { basename } from "node:path";
import { readFileBounded, writeFileAtomic } from "@coppice/core/node";
import type { CollectedStatistics } from "../collected-statistics.js";
import { decodeStatistics, encodeStatistics } from "../statistics-file.js";
import { statisticsLimit } from "../statistics-size.js";

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
  { overwrite = false, signal }: WriteStatisticsOptions = {},
): Promise<void> {
  await writeFileAtomic(path, encodeStatistics(statistics), { overwrite, signal });
}

/**
 * Reads a statistics file.
 * @throws COPPICE_STATS_FORMAT, COPPICE_IO_READ, COPPICE_ABORTED
 */
export async function readStatistics(
  path: string,
  { signal }: { signal?: AbortSignal } = {},
): Promise<CollectedStatistics> {
  const code = "COPPICE_STATS_FORMAT";
  return decodeStatistics(await readFileBounded(path, { limit: fileLimit, code, signal }), basename(path));
}
