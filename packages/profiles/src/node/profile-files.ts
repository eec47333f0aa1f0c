import { basename } from "node:path";
import { readTextBounded, writeFileAtomic } from "@coppice/core/node";
import { decodeProfiles, encodeProfiles, profileLimits } from "../profile-file.js";
import type { ProfileStore } from "../profile-store.js";
import type { WriteOptions } from "./write-options.js";

/**
 * Writes a file of profiles, which appears complete or not at all.
 * @throws COPPICE_IO_EXISTS, COPPICE_IO_WRITE, COPPICE_IO_NO_SPACE, COPPICE_ABORTED
 */
export async function writeProfiles(
  path: string,
  store: ProfileStore,
  { overwrite = false, signal }: WriteOptions = {},
): Promise<void> {
  await writeFileAtomic(path, encodeProfiles(store), { overwrite, signal });
}

/** @throws COPPICE_PROFILE_FORMAT, COPPICE_IO_READ, COPPICE_ABORTED */
export async function readProfiles(
  path: string,
  { signal }: { readonly signal?: AbortSignal } = {},
): Promise<ProfileStore> {
  // UTF-8 takes at most three bytes per UTF-16 unit.
  const limit = 3 * profileLimits.fileChars;
  const text = await readTextBounded(path, { limit, code: "COPPICE_PROFILE_FORMAT", signal });
  return decodeProfiles(text, basename(path));
}
