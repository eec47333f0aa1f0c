import type { Executor } from "@coppice/core";
import { createRemoteExecutor, type RemoteExecutorOptions } from "@coppice/evaluate";
import { type CommandTransportOptions, connectCommand } from "./command-transport.js";

export type CommandExecutorOptions = CommandTransportOptions & Omit<RemoteExecutorOptions, "transport">;

/**
 * An executor whose plans are evaluated by any command, one run per batch of plans. Disposing it ends the commands that
 * still run.
 * @throws COPPICE_USAGE, COPPICE_TASK_METRIC
 */
export async function createCommandExecutor(options: CommandExecutorOptions): Promise<Executor> {
  return createRemoteExecutor({ ...options, transport: connectCommand(options) });
}
