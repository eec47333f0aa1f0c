import { basename } from "node:path";
import { decodeProfiles, encodeProfiles, profileLimits } from "../profile-file.js";
import type { ProfileStore } from "../profile-store.js";
import { readWhole, type WriteOptions, writeWhole } from "./whole-file.js";

/**
 * Writes a file of profiles, which appears complete or not at all.
 * @throws COPPICE_IO_EXISTS, COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE, COPPICE_ABORTED
 */
export function writeProfiles(path: string, store: ProfileStore, options: WriteOptions = {}): Promise<void> {
  return writeWhole(path, encodeProfiles(store), options);
}

/** @throws COPPICE_PROFILE_FORMAT, COPPICE_IO_READ, COPPICE_ABORTED */
export async function readProfiles(
  path: string,
  { signal }: { readonly signal?: AbortSignal } = {},
): Promise<ProfileStore> {
  // UTF-8 takes at most three bytes per UTF-16 unit.
  const bytes = await readWhole(path, 3 * profileLimits.fileChars, "COPPICE_PROFILE_FORMAT", signal);
  return decodeProfiles(new TextDecoder().decode(bytes), basename(path));
}
