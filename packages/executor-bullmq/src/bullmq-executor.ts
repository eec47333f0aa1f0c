import type { Executor } from "@coppice/core";
import { createRemoteExecutor, type RemoteExecutorOptions } from "@coppice/evaluate";
import { type BullmqTransportOptions, connectBullmq } from "./bullmq-transport.js";

export type BullmqExecutorOptions = BullmqTransportOptions & Omit<RemoteExecutorOptions, "transport">;

/**
 * An executor whose plans are evaluated by workers on any number of machines, through Redis. Disposing it closes its
 * connections; the workers go on.
 * @throws what `connectBullmq` throws; COPPICE_TASK_METRIC
 */
export async function createBullmqExecutor(options: BullmqExecutorOptions): Promise<Executor> {
  return createRemoteExecutor({ ...options, transport: await connectBullmq(options) });
}
