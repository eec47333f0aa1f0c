import type { Executor } from "@coppice/core";
import type { Objective } from "./objective.js";
import { owningExecutor } from "./owning-executor.js";
import { createRemotePool, type RemotePoolOptions, type RemoteTaskOptions } from "./remote-pool.js";

/** What is scored, where, and on which task. */
export type RemoteExecutorOptions = RemotePoolOptions &
  Omit<RemoteTaskOptions, "signal"> & { readonly objective?: Objective };

/**
 * An executor whose plans are evaluated on one task wherever `transport` takes them. It owns the transport: disposing
 * it, or failing here, closes it.
 * @throws COPPICE_TASK_METRIC
 */
export async function createRemoteExecutor(options: RemoteExecutorOptions): Promise<Executor> {
  const { model, engine, transport, emitter, task, limit, chat, objective } = options;
  const pool = createRemotePool({ model, engine, transport, ...(emitter && { emitter }) });
  const open = () =>
    pool.scorer({
      task,
      ...(limit !== undefined && { limit }),
      ...(chat !== undefined && { chat }),
      ...(objective !== undefined && { objective }),
    });
  return owningExecutor(pool, open, { endScorer: true });
}
