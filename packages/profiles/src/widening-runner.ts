import { partialModel } from "@coppice/checkpoint";
import {
  type Backend,
  CoppiceError,
  checkOwned,
  type KvCache,
  type MoeModel,
  type Plan,
  type RunAttention,
  type Runner,
  type RunRequest,
  type RunResult,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import { type Drift, DriftMonitor, type DriftOptions } from "./drift-monitor.js";
import { readRouters } from "./full-router.js";
import { withTap } from "./with-tap.js";

export interface WideningRunnerOptions extends Pick<DriftOptions, "threshold" | "window" | "least"> {
  readonly backend: Backend;
  readonly model: MoeModel;
  readonly weights: WeightReader;
  /** The plan to begin with, and then wider ones (`wideningPlans`), which may only keep experts. */
  readonly plans: Iterable<Plan>;
  /** Called when a wider plan is about to be loaded. */
  readonly onWiden?: (widening: Widening) => void;
  readonly signal?: AbortSignal;
}

export interface Widening {
  /** What the plan so far dropped. */
  readonly drift: Drift;
  readonly from: Plan;
  readonly to: Plan;
}

/**
 * A runner that holds the experts of a plan alone and watches what they drop. When that exceeds the threshold, it loads
 * the experts of the next plan and repeats the run under it; cached sequences are read again, because their keys and
 * values come from the narrower model. So whoever generates text with it needs to know nothing of all this.
 *
 * Runs under its own plan: a request may not have one.
 */
export interface WideningRunner extends Runner {
  /** Of the experts that are loaded. */
  readonly plan: Plan;
  /** After the latest run; undefined before the first. */
  readonly drift: Drift | undefined;
}

/** @throws those of `partialModel` and `Backend.load`; COPPICE_USAGE without plans */
export async function openWideningRunner(options: WideningRunnerOptions): Promise<WideningRunner> {
  const { model, weights, signal } = options;
  const plans = options.plans[Symbol.iterator]();
  const { done, value } = plans.next();
  if (done) throw new CoppiceError("COPPICE_USAGE", "no plan is given to begin with, expected at least one");
  const routers = await readRouters(model, weights, signal);
  const load = async (plan: Plan): Promise<Loaded> => {
    const { experts, ...part } = partialModel(model, weights, plan);
    const monitor = new DriftMonitor({ ...options, routers, kept: experts });
    return { plan, monitor, runner: await options.backend.load({ ...part, ...(signal && { signal }) }) };
  };
  return new LoadingRunner(model, await load(value), plans, load, options.onWiden);
}

interface Loaded {
  readonly plan: Plan;
  readonly runner: Runner;
  readonly monitor: DriftMonitor;
}

class LoadingRunner implements WideningRunner {
  readonly model: MoeModel;
  drift: Drift | undefined;
  #loaded: Loaded;
  readonly #plans: Iterator<Plan>;
  readonly #load: (plan: Plan) => Promise<Loaded>;
  readonly #onWiden: WideningRunnerOptions["onWiden"];
  /** False once the plans have come to their end. */
  #canWiden = true;

  constructor(
    model: MoeModel,
    loaded: Loaded,
    plans: Iterator<Plan>,
    load: (plan: Plan) => Promise<Loaded>,
    onWiden: WideningRunnerOptions["onWiden"],
  ) {
    this.model = model;
    this.#loaded = loaded;
    this.#plans = plans;
    this.#load = load;
    this.#onWiden = onWiden;
  }

  get plan(): Plan {
    return this.#loaded.plan;
  }

  get draws(): boolean {
    return this.#loaded.runner.draws ?? false;
  }

  createCache(sequences: number, attention?: RunAttention): KvCache {
    return new RepeatableCache(this, sequences, attention);
  }

  async run(request: RunRequest): Promise<RunResult> {
    if (request.plan) {
      throw new CoppiceError("COPPICE_USAGE", "the request has a plan; this runner runs under its own");
    }
    const cache = checkOwned(this, RepeatableCache, request.cache, "cache");
    for (;;) {
      throwIfAborted(request.signal, "running with some of the experts");
      const result = await this.#runOnce(request, cache);
      if (await this.#widened()) continue;
      cache?.commit(request.sequences);
      return result;
    }
  }

  dispose(): Promise<void> {
    return this.#loaded.runner.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #runOnce(request: RunRequest, cache: RepeatableCache | undefined): Promise<RunResult> {
    const { runner, monitor } = this.#loaded;
    const observe = (run: RunRequest) =>
      runner.run(withTap(run, DriftMonitor.fields, (layer) => monitor.observe(layer)));
    if (!cache) return observe(request);
    const { signal } = request;
    const inner = await cache.inner(runner, async (fresh, sequences) => {
      await observe({ sequences, cache: fresh, ...(signal && { signal }) });
      monitor.settle();
    });
    return observe({ ...request, cache: inner });
  }

  /** Loads the next plan when the run dropped too much and there is one. */
  async #widened(): Promise<boolean> {
    const drift = this.#loaded.monitor.settle();
    this.drift = drift;
    if (!drift.drifted || !this.#canWiden) return false;
    const { done, value } = this.#plans.next();
    this.#canWiden = !done;
    if (done) return false;
    this.#onWiden?.({ drift, from: this.plan, to: value });
    // First out, then in: memory never has to hold both.
    await this.#loaded.runner.dispose();
    this.#loaded = await this.#load(value);
    return true;
  }
}

/** A cache that knows its tokens, so that another runner can read them again. */
class RepeatableCache implements KvCache {
  readonly owner: WideningRunner;
  readonly #tokens: number[][];
  readonly #attention: RunAttention | undefined;
  #inner: { readonly runner: Runner; readonly cache: KvCache } | undefined;

  constructor(owner: WideningRunner, sequences: number, attention: RunAttention | undefined) {
    this.owner = owner;
    this.#attention = attention;
    this.#tokens = Array.from({ length: sequences }, () => []);
  }

  get lengths(): readonly number[] {
    return this.#tokens.map(({ length }) => length);
  }

  /** The cache of `runner` with the same tokens; `read` fills a fresh one. */
  async inner(
    runner: Runner,
    read: (cache: KvCache, sequences: readonly Int32Array[]) => Promise<void>,
  ): Promise<KvCache> {
    if (this.#inner?.runner === runner) return this.#inner.cache;
    this.dispose();
    const cache = runner.createCache(this.#tokens.length, this.#attention);
    try {
      if (this.#tokens.some(({ length }) => length > 0)) {
        await read(
          cache,
          this.#tokens.map((tokens) => Int32Array.from(tokens)),
        );
      }
    } catch (error) {
      cache.dispose();
      throw error;
    }
    this.#inner = { runner, cache };
    return cache;
  }

  /** Takes note of the tokens of a run. */
  commit(sequences: readonly Int32Array[]): void {
    sequences.forEach((sequence, i) => {
      for (const token of sequence) this.#tokens[i]?.push(token);
    });
  }

  dispose(): void {
    this.#inner?.cache.dispose();
    this.#inner = undefined;
  }
}
