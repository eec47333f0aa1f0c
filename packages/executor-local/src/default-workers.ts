import { availableParallelism, freemem } from "node:os";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { modelSize } from "@coppice/core";

/** More workers than this share memory bandwidth rather than add speed. */
const mostWorkers = 4;
/** Part of the free memory that weights may take; the rest is for activations and everyone else. */
const memoryShare = 0.6;

/**
 * How many workers a model gets unless the caller says: one per core, at most four, and no more than hold the
 * weights as float32 in the memory that is free. Reads headers only.
 * @throws the errors of `loadModel`
 */
export async function defaultWorkers(path: string, signal?: AbortSignal): Promise<number> {
  await using checkpoint = await loadModel(await openFolder(path), signal ? { signal } : {});
  const bytes = modelSize(checkpoint.model).parameters * Float32Array.BYTES_PER_ELEMENT;
  const fitting = Math.floor((memoryShare * freemem()) / bytes);
  return Math.max(1, Math.min(mostWorkers, availableParallelism(), fitting));
}
