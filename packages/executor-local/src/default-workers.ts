import { availableParallelism, freemem } from "node:os";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { modelSize } from "@coppice/core";
import { type BackendSource, createPlugin } from "./plugin-source.js";

/** More workers than this share memory bandwidth rather than add speed. */
const mostWorkers = 4;
/** Part of the free memory that weights may take; the rest is for activations and everyone else. */
const memoryShare = 0.6;

/**
 * How many workers a model gets unless the caller says: one per core, at most four, no more than hold the weights as
 * float32 in the memory that is free, and no more than the backend says that it gains from. Reads headers only.
 * @throws the errors of `loadModel` and `createPlugin`
 */
export async function defaultWorkers(
  path: string,
  source: BackendSource,
  signal?: AbortSignal,
): Promise<number> {
  const { capabilities } = await createPlugin("backend", source);
  await using checkpoint = await loadModel(await openFolder(path), signal ? { signal } : {});
  const bytes = modelSize(checkpoint.model).parameters * Float32Array.BYTES_PER_ELEMENT;
  const fitting = Math.floor((memoryShare * freemem()) / bytes);
  const { runners = mostWorkers } = capabilities.pace ?? {};
  return Math.max(1, Math.min(mostWorkers, runners, availableParallelism(), fitting));
}
