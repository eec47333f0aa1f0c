import {
  type AttentionPlan,
  addWork,
  CoppiceError,
  type Executor,
  noWork,
  type Plan,
  type PlanScores,
  throwIfAborted,
  type WorkCounters,
} from "@coppice/core";
import type { Objective, Task } from "@coppice/evaluate";
import { stopSignal } from "./stop-signal.js";
import type { WorkerHost } from "./worker-host.js";

export interface ScorerOptions {
  readonly task: Task;
  /** First samples only. */
  readonly limit?: number;
  readonly chat?: boolean;
  /** Default: `likelihood`, for text `log-likelihood`. */
  readonly objective?: Objective;
  /** Memory for reused activations, shared out to the workers. Default 256 MB each. */
  readonly prefixCacheBytes?: number;
  /** How far heads see, the whole model's that an objective compares with included. Default: as the model is. */
  readonly attention?: AttentionPlan;
  readonly signal?: AbortSignal;
}

let nextScorer = 1;

/**
 * Scores plans with all workers at once: each owns a fixed share of the micro-batches, so whatever a plan shares with
 * an earlier one is in the cache of the very worker that needs it, and results are the same bits for any number of
 * workers. Plans of one call are pipelined; a worker that is done with one goes on to the next.
 */
export async function createScorer(hosts: readonly WorkerHost[], options: ScorerOptions): Promise<Executor> {
  const { task, limit, chat, objective, prefixCacheBytes, attention, signal } = options;
  const scorer = nextScorer++;
  const name = `scorer ${scorer}`;
  const shards = await Promise.all(
    hosts.map(async (host, index) => {
      const params = {
        scorer,
        task,
        shard: { index, count: hosts.length },
        ...(limit !== undefined && { limit }),
        ...(chat !== undefined && { chat }),
        ...(objective !== undefined && { objective }),
        ...(attention && { attention }),
        ...(prefixCacheBytes !== undefined && { prefixCacheBytes: prefixCacheBytes / hosts.length }),
      };
      const made = await host.establish(name, "createScorer", params, { signal });
      return { host, ...made, counters: new Counters() };
    }),
  );
  const parts = shards[0]?.parts.length ?? 1;
  const busyParts = shards[0]?.busyParts;
  /** Samples of one part, or of all, and which of them each worker scores; one without any has nothing to say. */
  const share = (part: number | undefined) => {
    const owned = shards.map((shard) => ({
      ...shard,
      samples:
        part === undefined ? shard.parts.flatMap((samples) => [...samples]) : [...(shard.parts[part] ?? [])],
    }));
    const all = owned.flatMap(({ samples }) => samples).sort((a, b) => a - b);
    const rank = new Map(all.map((sample, i) => [sample, i]));
    const active = owned.filter(({ samples }) => samples.length > 0);
    return {
      size: all.length,
      active: active.map(({ host, busyParts, counters, samples }) => ({
        host,
        overlaps: busyParts !== undefined,
        counters,
        places: samples.sort((a, b) => a - b).map((sample) => rank.get(sample) as number),
      })),
    };
  };
  const shares = new Map([undefined, ...Array(parts).keys()].map((part) => [part, share(part)]));
  let disposed: Promise<void> | undefined;

  const evaluateOne = async (
    plan: Plan,
    part: number | undefined,
    stop: AbortSignal,
  ): Promise<PlanScores> => {
    const { size, active } = shares.get(part) ?? share(part);
    const scores = new Float64Array(size);
    let correct: Uint8Array | undefined;
    await Promise.all(
      active.map(async ({ host, overlaps, places, counters }) => {
        const result = await host.call(
          "evaluate",
          { scorer, plan, part },
          { signal: stop, beside: overlaps },
        );
        counters.update(result.work);
        if (result.correct) correct ??= new Uint8Array(size);
        places.forEach((place, i) => {
          scores[place] = result.scores[i] as number;
          if (correct && result.correct) correct[place] = result.correct[i] as number;
        });
      }),
    );
    return { scores, ...(correct && { correct }) };
  };

  const dispose = (): Promise<void> => {
    disposed ??= Promise.all(
      hosts.map((host) => {
        host.forget(name);
        // The workers may be gone already.
        return host.call("disposeScorer", { scorer }).catch(() => {});
      }),
    ).then(() => {});
    return disposed;
  };

  return {
    preferredBatch: 4,
    parts,
    ...(busyParts !== undefined && { busyParts }),
    async evaluate(plans, { signal: outer, part } = {}) {
      throwIfAborted(outer, "evaluating plans");
      if (disposed) {
        throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the executor was used after its disposal");
      }
      // The first failure ends the call, so what still waits must not run on.
      const failed = new AbortController();
      const stop = stopSignal(outer, failed);
      try {
        return await Promise.all(plans.map((plan) => evaluateOne(plan, part, stop)));
      } catch (error) {
        failed.abort();
        throwIfAborted(outer, "evaluating plans");
        throw error;
      }
    },
    work: () => Counters.sum(shards.map(({ counters }) => counters)),
    dispose,
    [Symbol.asyncDispose]: dispose,
  };
}

/** Work of one shard. A worker that was started again counts from 0. */
class Counters {
  #before = noWork;
  #now = noWork;

  update(work: WorkCounters): void {
    if (work.tokenLayers < this.#now.tokenLayers) this.#before = addWork(this.#before, this.#now);
    this.#now = work;
  }

  static sum(counters: readonly Counters[]): WorkCounters {
    return counters.reduce((sum, counter) => addWork(sum, addWork(counter.#before, counter.#now)), noWork);
  }
}
