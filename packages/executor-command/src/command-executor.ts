import type { Executor, MoeModel } from "@coppice/core";
import { createRemotePool, type Objective, type Task } from "@coppice/evaluate";
import { type CommandTransportOptions, connectCommand } from "./command-transport.js";

export interface CommandExecutorOptions extends CommandTransportOptions {
  /** Described here, loaded by the program. */
  readonly model: MoeModel;
  /** What computes, in the words of the program: versions and backend with its options. */
  readonly engine: string;
  readonly task: Task;
  /** First samples only. */
  readonly limit?: number;
  readonly chat?: boolean;
  readonly objective?: Objective;
}

/**
 * An executor whose plans are evaluated by any command, one run per batch of plans. Disposing it ends the commands that
 * still run.
 * @throws COPPICE_USAGE, COPPICE_TASK_METRIC
 */
export async function createCommandExecutor(options: CommandExecutorOptions): Promise<Executor> {
  const { model, engine, emitter, task, limit, chat, objective } = options;
  const transport = connectCommand(options);
  const pool = createRemotePool({ model, engine, transport, ...(emitter && { emitter }) });
  try {
    const scorer = await pool.scorer({
      task,
      ...(limit !== undefined && { limit }),
      ...(chat !== undefined && { chat }),
      ...(objective !== undefined && { objective }),
    });
    const dispose = async () => {
      await scorer.dispose();
      await pool.dispose();
    };
    return {
      preferredBatch: scorer.preferredBatch,
      evaluate: (plans, evaluateOptions) => scorer.evaluate(plans, evaluateOptions),
      work: () => scorer.work(),
      dispose,
      [Symbol.asyncDispose]: dispose,
    };
  } catch (error) {
    await pool.dispose();
    throw error;
  }
}
