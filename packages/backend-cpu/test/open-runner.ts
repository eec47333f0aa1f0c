import type { MemoryModel } from "@coppice/plugin-kit";
import { CpuRunner } from "../src/runner.js";
import { loadRuntime, Sessions } from "../src/sessions.js";
import type { UnitLimits } from "../src/units.js";
import { readWeights } from "../src/weights.js";

const settings = { threads: 1, mergeCacheBytes: 2 ** 20 };

/** A runner with its sessions; small limits split what it runs. */
export async function open({ model, weights }: MemoryModel, limits?: UnitLimits) {
  const runtime = await loadRuntime();
  const sessions = new Sessions(runtime, 1);
  const range = { from: 0, to: model.layers.length };
  const read = await readWeights(runtime, model, weights, range, undefined);
  return { sessions, runner: new CpuRunner(runtime, model, range, read, settings, sessions, limits) };
}

/** Different lengths, some beginnings alike. */
export const sequences = [
  [5, 3, 8, 1, 2, 9, 4, 4, 7, 1, 3],
  [5, 3, 8, 2],
  [1],
  [5, 3, 8, 1, 2, 6],
  [9, 9],
].map((ids) => Int32Array.from(ids));
export const positions = sequences.map((ids) => Int32Array.from(ids.keys()));
