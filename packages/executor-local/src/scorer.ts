import {
  CoppiceError,
  type Executor,
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
  readonly signal?: AbortSignal;
}

let nextScorer = 1;

/**
 * Scores plans with all workers at once: each owns a fixed share of the micro-batches, so whatever a plan shares with
 * an earlier one is in the cache of the very worker that needs it, and results are the same bits for any number of
 * workers. Plans of one call are pipelined; a worker that is done with one goes on to the next.
 */
export async function createScorer(hosts: readonly WorkerHost[], options: ScorerOptions): Promise<Executor> {
  const { task, limit, chat, objective, prefixCacheBytes, signal } = options;
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
        ...(prefixCacheBytes !== undefined && { prefixCacheBytes: prefixCacheBytes / hosts.length }),
      };
      const { samples, total } = await host.establish(name, "createScorer", params, { signal });
      return { host, samples, total, counters: new Counters() };
    }),
  );
  // A worker without samples (fewer batches than workers) has nothing to say.
  const active = shards.filter(({ samples }) => samples.length > 0);
  const total = shards[0]?.total ?? 0;
  let disposed: Promise<void> | undefined;

  const evaluateOne = async (plan: Plan, stop: AbortSignal): Promise<PlanScores> => {
    const scores = new Float64Array(total);
    let correct: Uint8Array | undefined;
    await Promise.all(
      active.map(async ({ host, samples, counters }) => {
        const part = await host.call("evaluate", { scorer, plan }, { signal: stop });
        counters.update(part.work);
        if (part.correct) correct ??= new Uint8Array(total);
        samples.forEach((sample, i) => {
          scores[sample] = part.scores[i] as number;
          if (correct && part.correct) correct[sample] = part.correct[i] as number;
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
    async evaluate(plans, { signal: outer } = {}) {
      throwIfAborted(outer, "evaluating plans");
      if (disposed) {
        throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the executor was used after its disposal");
      }
      // The first failure ends the call, so what still waits must not run on.
      const failed = new AbortController();
      const stop = stopSignal(outer, failed);
      try {
        return await Promise.all(plans.map((plan) => evaluateOne(plan, stop)));
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
  #before: WorkCounters = { tokenLayers: 0, avoidedTokenLayers: 0 };
  #now: WorkCounters = this.#before;

  update(work: WorkCounters): void {
    if (work.tokenLayers < this.#now.tokenLayers) this.#before = add(this.#before, this.#now);
    this.#now = work;
  }

  static sum(counters: readonly Counters[]): WorkCounters {
    return counters.reduce<WorkCounters>((sum, counter) => add(sum, add(counter.#before, counter.#now)), {
      tokenLayers: 0,
      avoidedTokenLayers: 0,
    });
  }
}

function add(a: WorkCounters, b: WorkCounters): WorkCounters {
  return {
    tokenLayers: a.tokenLayers + b.tokenLayers,
    avoidedTokenLayers: a.avoidedTokenLayers + b.avoidedTokenLayers,
  };
}
