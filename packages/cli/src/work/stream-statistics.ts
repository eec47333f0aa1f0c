import { existsSync } from "node:fs";
import { mkdir, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { type CollectedStatistics, clearLayerStream, type StreamEstimate } from "@coppice/calibrate";
import { openWorkFolder } from "@coppice/calibrate/node";
import { CoppiceError, isCoppiceError, type LayerRange } from "@coppice/core";
import { collectStatisticsByLayers, type StatisticsOptions } from "@coppice/executor-local";
import { formatBytes } from "@coppice/report";
import { takeLock } from "@coppice/search/node";
import type { CliContext } from "../context.js";
import { findPlugin } from "../plugins/find-plugin.js";
import { formatDuration } from "../terminal/format.js";
import { backendSource, type PoolOptions } from "./model-pool.js";
import type { OpenModel } from "./open-model.js";
import { engineOf } from "./work-pool.js";

/** What a pass that is not finished leaves in its folder. */
const recordName = "calibration.json";

export interface StreamOptions extends Omit<PoolOptions, "workers"> {
  readonly collection: StatisticsOptions & { readonly kind: "prompts" | "answers" };
  /** Absolute path of the folder for the work. */
  readonly work: string;
  readonly memory: number;
  /** Writes the result, after which the work is removed. */
  readonly keep: (statistics: CollectedStatistics) => Promise<void>;
}

export interface Streamed {
  readonly statistics: CollectedStatistics;
  /** Absent when all layers were done before. */
  readonly estimate: StreamEstimate | undefined;
}

/** Collects statistics some layers at a time, in a folder from which a later run continues. */
export async function streamStatistics(
  opened: OpenModel,
  options: StreamOptions,
  context: CliContext,
): Promise<Streamed> {
  const { collection, work, memory, keep } = options;
  const backend = findPlugin("backend", options.backend, context.io.cwd);
  await mkdir(work, { recursive: true }).catch((cause: unknown) => {
    throw new CoppiceError("COPPICE_IO_WRITE", `could not make ${work}: ${(cause as Error).message}`, {
      cause,
    });
  });
  try {
    const unlock = await takeLock(join(work, "run.lock"));
    try {
      if (existsSync(join(work, recordName))) {
        context.out.note(`Continuing the work in ${context.shown(work)}.`);
      }
      let estimate: StreamEstimate | undefined;
      const statistics = await collectStatisticsByLayers({
        ...collection,
        model: opened.path,
        backend: backendSource(backend, options),
        engine: engineOf(backend, options.backendSet),
        work,
        memory,
        onEstimate: (measured) => {
          estimate = measured;
          context.out.note(describeEstimate(measured, context.shown(work)));
        },
      });
      context.out.settle();
      await keep(statistics);
      await clearLayerStream(await openWorkFolder(work));
      return { statistics, estimate };
    } catch (error) {
      const mine = !isCoppiceError(error, "COPPICE_RUN_IDENTITY");
      if (mine && existsSync(join(work, recordName))) {
        context.out.note(`Finished layers are kept in ${context.shown(work)}; the same command continues.`);
      }
      throw error;
    } finally {
      await unlock();
    }
  } finally {
    // Only an empty folder goes: one with unfinished work is what the next run needs.
    await rmdir(work).catch(() => {});
  }
}

function describeEstimate(estimate: StreamEstimate, work: string): string {
  const { seconds, bytes, bytesPerSecond, tokenLayers, tokenLayersPerSecond, measured, loads } = estimate;
  const count = (value: number) => Math.round(value).toLocaleString("en");
  return [
    `Estimate: about ${formatDuration(1000 * seconds)} to go,`,
    `${formatBytes(bytes)} of weights to read at ${formatBytes(bytesPerSecond)} per second`,
    `and ${count(tokenLayers)} tokens x layers to run at ${count(tokenLayersPerSecond)} per second,`,
    `as measured on ${count(measured.tokens)} tokens of ${nameLayers(measured.layers)}.`,
    `Layers are loaded in ${loads} ${loads === 1 ? "part" : "parts"};`,
    `memory stays below about ${formatBytes(estimate.memoryBytes)},`,
    `hidden states up to ${formatBytes(estimate.diskBytes)} in ${work}.`,
  ].join(" ");
}

function nameLayers({ from, to }: LayerRange): string {
  return to === from + 1 ? `layer ${from}` : `layers ${from} to ${to - 1}`;
}
