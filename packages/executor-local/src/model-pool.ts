import type { CollectedStatistics } from "@coppice/calibrate";
import { type AttentionPlan, checkWholeNumber, type Executor, type MoeModel, type Plan } from "@coppice/core";
import {
  combinePositions,
  combineScores,
  type Generated,
  type GenerateOptions,
  type PositionScores,
  type TaskScore,
  type WrittenSamples,
} from "@coppice/evaluate";
import { defaultWorkers } from "./default-workers.js";
import { all, progressOf } from "./on-hosts.js";
import type { AttentionSource, BackendSource } from "./plugin-source.js";
import { type PoolSamplesOptions, writeOnHosts } from "./pool-samples.js";
import { collectOnHosts, type PoolStatisticsOptions } from "./pool-statistics.js";
import type { PoolPositionOptions, PoolTaskOptions } from "./pool-task.js";
import { createScorer, type ScorerOptions } from "./scorer.js";
import { WorkerHost } from "./worker-host.js";
import type { Isolation } from "./worker-port.js";

export interface ModelPoolOptions {
  /** Checkpoint folder. */
  readonly model: string;
  readonly backend: BackendSource;
  /** Default: one per core, at most 4, no more than hold the weights in free memory, and no more than the backend's `pace` says. */
  readonly workers?: number;
  /** Default "process". */
  readonly isolation?: Isolation;
  readonly signal?: AbortSignal;
}

/** As those of `generate`; attention as workers can open it. */
export type PoolGenerateOptions = Omit<GenerateOptions, "attention"> & {
  readonly attention?: AttentionSource;
};

/**
 * A model that is loaded in several workers, so that the calling thread stays free. Results do not depend on the
 * number of workers, to the last bit. Every method throws COPPICE_ABORTED at once when its signal is aborted,
 * COPPICE_BACKEND_CRASHED when a worker ended unexpectedly and did so again when started anew, COPPICE_BACKEND_LOST when
 * a device was lost again and again, and
 * COPPICE_BACKEND_DISPOSED after `dispose`.
 */
export interface ModelPool extends AsyncDisposable {
  readonly model: MoeModel;
  readonly workers: number;
  /** An executor for searches on one task. Disposing it frees its memory and leaves the pool as it is. */
  scorer(options: ScorerOptions): Promise<Executor>;
  /** `evaluateTask` of `@coppice/evaluate`, samples shared out to the workers. */
  evaluateTask(
    options: PoolTaskOptions & {
      readonly metric?: string;
      readonly plan?: Plan;
      readonly attention?: AttentionSource;
    },
  ): Promise<TaskScore>;
  /** `evaluatePositions` of `@coppice/evaluate`, windows shared out to the workers. */
  evaluatePositions(options: PoolPositionOptions): Promise<PositionScores>;
  /** `collectStatistics` of `@coppice/calibrate` on the samples. */
  collectStatistics(options: PoolStatisticsOptions): Promise<CollectedStatistics>;
  /** `writeSamples` of `@coppice/evaluate`, groups of texts shared out to the workers. */
  writeSamples(options: PoolSamplesOptions): Promise<WrittenSamples>;
  /** `generate` of `@coppice/evaluate`, on one worker. */
  generate(prompt: string | Int32Array, options?: PoolGenerateOptions): Promise<Generated>;
  /** Logits, [sequence][position], at the last position or at all. */
  logits(
    sequences: readonly Int32Array[],
    options?: {
      readonly all?: boolean;
      readonly plan?: Plan;
      /** How far heads see, at the length of each sequence. Default: as the model is. */
      readonly attention?: AttentionPlan;
      readonly signal?: AbortSignal;
    },
  ): Promise<Float32Array[][]>;
  /** Milliseconds in which each worker had something to do since the pool was made: what is idle is the rest. */
  busyMs(): readonly number[];
  /** Ends all workers, whatever they do. */
  dispose(): Promise<void>;
}

/** More processes than any machine has cores for are a slip of the keyboard. */
const mostWorkers = 1024;

/**
 * Loads a model into workers.
 * @throws COPPICE_BACKEND_UNAVAILABLE, COPPICE_PLUGIN_INVALID, COPPICE_PLUGIN_OPTIONS, COPPICE_BACKEND_UNSUPPORTED,
 * the COPPICE_FORMAT and COPPICE_FAMILY errors of the checkpoint, COPPICE_USAGE, COPPICE_ABORTED
 */
export async function createModelPool(options: ModelPoolOptions): Promise<ModelPool> {
  const { model: path, backend, isolation = "process", signal } = options;
  const wanted = options.workers ?? (await defaultWorkers(path, backend, signal));
  const workers = checkWholeNumber("workers", wanted, mostWorkers);
  const hosts = Array.from({ length: workers }, () => new WorkerHost(isolation));
  let disposed: Promise<void> | undefined;
  const dispose = (): Promise<void> => {
    disposed ??= Promise.all(hosts.map((host) => host.dispose())).then(() => {});
    return disposed;
  };
  let model: MoeModel;
  try {
    const opened = await Promise.all(
      hosts.map((host) => host.establish("open", "open", { model: path, backend }, { signal })),
    );
    model = (opened[0] as (typeof opened)[number]).model;
  } catch (error) {
    await dispose();
    throw error;
  }
  const shard = (index: number) => ({ index, count: workers });
  // Calls that need one worker take turns.
  let turn = 0;
  const nextHost = () => hosts[turn++ % workers] as WorkerHost;

  return {
    model,
    workers,
    dispose,
    [Symbol.asyncDispose]: dispose,
    busyMs: () => hosts.map(({ busyMs }) => busyMs),
    scorer: (scorerOptions) => createScorer(hosts, scorerOptions),

    async evaluateTask({ signal: stop, emitter, ...params }) {
      const onEvent = progressOf(emitter, "evaluating", "samples");
      const shards = await all(hosts, stop, (host, index, signal) =>
        host.call("scoreTask", { ...params, shard: shard(index) }, { signal, onEvent }),
      );
      const { metric, total } = shards[0] as (typeof shards)[number];
      return combineScores(
        metric,
        total,
        shards.map(({ scores }) => scores),
      );
    },

    async evaluatePositions({ signal: stop, emitter, ...params }) {
      const onEvent = progressOf(emitter, "evaluating", "samples");
      const shards = await all(hosts, stop, (host, index, signal) =>
        host.call("scorePositions", { ...params, shard: shard(index) }, { signal, onEvent }),
      );
      return combinePositions(shards as [(typeof shards)[number], ...typeof shards]);
    },

    collectStatistics: (request) => collectOnHosts(hosts, request),

    writeSamples: (request) => writeOnHosts(hosts, model, request),

    generate: (prompt, { onToken, signal: stop, ...rest } = {}) =>
      nextHost().call(
        "generate",
        { prompt, options: rest },
        {
          signal: stop,
          onEvent: (event) => event.type === "token" && onToken?.(event.token, event.text),
        },
      ),

    logits: (sequences, { all: everywhere = false, signal: stop, ...limits } = {}) =>
      all(sequences, stop, (sequence, _, signal) =>
        nextHost().call("logits", { sequence, all: everywhere, ...limits }, { signal }),
      ),
  };
}
