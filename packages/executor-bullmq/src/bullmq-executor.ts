import type { Executor, MoeModel } from "@coppice/core";
import { createRemotePool, type Objective, type Task } from "@coppice/evaluate";
import { type BullmqTransportOptions, connectBullmq } from "./bullmq-transport.js";

export interface BullmqExecutorOptions extends BullmqTransportOptions {
  /** Described here, loaded by the workers. */
  readonly model: MoeModel;
  /** What computes, in the workers' words: versions and backend with its options. */
  readonly engine: string;
  readonly task: Task;
  /** First samples only. */
  readonly limit?: number;
  readonly chat?: boolean;
  readonly objective?: Objective;
}

/**
 * An executor whose plans are evaluated by workers on any number of machines, through Redis. Disposing it closes its
 * connections; the workers go on.
 * @throws what `connectBullmq` throws; COPPICE_TASK_METRIC
 */
export async function createBullmqExecutor(options: BullmqExecutorOptions): Promise<Executor> {
  const { model, engine, emitter, task, limit, chat, objective } = options;
  const transport = await connectBullmq(options);
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
