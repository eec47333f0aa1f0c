import { basename } from "node:path";
import type { RoutingTrace } from "../routing-trace.js";
import { decodeTrace, encodeTrace, traceLimits } from "../trace-file.js";
import { readWhole, type WriteOptions, writeWhole } from "./whole-file.js";

/**
 * Writes a routing trace, which appears complete or not at all.
 * @throws COPPICE_IO_EXISTS, COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE, COPPICE_ABORTED
 */
export function writeTrace(path: string, trace: RoutingTrace, options: WriteOptions = {}): Promise<void> {
  return writeWhole(path, encodeTrace(trace), options);
}

/** @throws COPPICE_TRACE_FORMAT, COPPICE_IO_READ, COPPICE_ABORTED */
export async function readTrace(
  path: string,
  { signal }: { readonly signal?: AbortSignal } = {},
): Promise<RoutingTrace> {
  return decodeTrace(
    await readWhole(path, traceLimits.fileBytes, "COPPICE_TRACE_FORMAT", signal),
    basename(path),
  );
}
