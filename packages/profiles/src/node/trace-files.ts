import { basename } from "node:path";
import { readFileBounded, writeFileAtomic } from "@coppice/core/node";
import type { RoutingTrace } from "../routing-trace.js";
import { decodeTrace, encodeTrace, traceLimits } from "../trace-file.js";
import type { WriteOptions } from "./write-options.js";

/**
 * Writes a routing trace, which appears complete or not at all.
 * @throws COPPICE_IO_EXISTS, COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE, COPPICE_ABORTED
 */
export async function writeTrace(
  path: string,
  trace: RoutingTrace,
  { overwrite = false, signal }: WriteOptions = {},
): Promise<void> {
  await writeFileAtomic(path, encodeTrace(trace), { overwrite, signal });
}

/** @throws COPPICE_TRACE_FORMAT, COPPICE_IO_READ, COPPICE_ABORTED */
export async function readTrace(
  path: string,
  { signal }: { readonly signal?: AbortSignal } = {},
): Promise<RoutingTrace> {
  const limit = traceLimits.fileBytes;
  const bytes = await readFileBounded(path, { limit, code: "COPPICE_TRACE_FORMAT", signal });
  return decodeTrace(bytes, basename(path));
}
