import type { CollectedStatistics, StreamEstimate } from "@coppice/calibrate";
import type { BackendSource } from "./plugin-source.js";
import { type StatisticsOptions, taskCollection, taskData } from "./pool-statistics.js";
import { WorkerHost } from "./worker-host.js";
import type { Isolation } from "./worker-port.js";

export interface LayerStreamOptions extends StatisticsOptions {
  /** Checkpoint folder. */
  readonly model: string;
  readonly backend: BackendSource;
  /** Generations need the whole model at once. */
  readonly kind?: "prompts" | "answers";
  /** Folder for hidden states and finished layers. */
  readonly work: string;
  /** Bytes of memory that the worker may take. Default: one layer at a time. */
  readonly memory?: number;
  /** What computes; see `collectByLayers`. */
  readonly engine?: string;
  /** Default "process". */
  readonly isolation?: Isolation;
  readonly onEstimate?: (estimate: StreamEstimate) => void;
}

/**
 * `collectByLayers` of `@coppice/calibrate` in a worker of its own: for models larger than memory. The bits are those of
 * `ModelPool.collectStatistics`. A worker that ends unexpectedly continues where it was, and so does a later call with
 * the same folder, which stays until it is removed.
 * @throws what `collectByLayers` throws, the COPPICE_FORMAT and COPPICE_FAMILY errors of the checkpoint, those of
 * backends, COPPICE_BACKEND_CRASHED
 */
export async function collectStatisticsByLayers(options: LayerStreamOptions): Promise<CollectedStatistics> {
  const {
    model,
    backend,
    work,
    memory,
    engine,
    isolation = "process",
    emitter,
    onEstimate,
    signal,
  } = options;
  const collection = taskCollection(options);
  const host = new WorkerHost(isolation);
  try {
    return await host.call(
      "collectByLayers",
      {
        model,
        backend,
        work,
        collection,
        data: taskData(options),
        ...(memory !== undefined && { memory }),
        ...(engine !== undefined && { engine }),
      },
      {
        signal,
        onEvent: (event) => {
          if (event.type === "progress") emitter?.notify("progress", event.progress);
          else if (event.type === "estimate") onEstimate?.(event.estimate);
        },
      },
    );
  } finally {
    await host.dispose();
  }
}
