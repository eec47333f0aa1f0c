import { basename } from "node:path";
import { type LoadedCheckpoint, type LoadOptions, loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import type { CliContext } from "../context.js";

/** A checkpoint that the user named, with the name and path to show. */
export interface OpenModel extends AsyncDisposable {
  readonly checkpoint: LoadedCheckpoint;
  readonly path: string;
  readonly name: string;
}

/** Opens the checkpoint folder `path`, relative to where the user works. Reads headers, no weights. */
export async function openModel(
  path: string,
  context: CliContext,
  options: Pick<LoadOptions, "headersOnly"> = {},
): Promise<OpenModel> {
  const folder = context.path(path);
  const { signal } = context;
  const checkpoint = await loadModel(await openFolder(folder, { signal }), { ...options, signal });
  return {
    checkpoint,
    path: folder,
    name: basename(folder),
    [Symbol.asyncDispose]: () => checkpoint.close(),
  };
}
