import {
  type CheckedRunRequest,
  checkOwned,
  type KvCache,
  type LayerMemory,
  type LayerRange,
  type MoeModel,
  type RunAttention,
  type Runner,
  RunnerGuard,
  type RunRequest,
  type RunResult,
} from "@coppice/core";
import type { CpuSettings } from "./backend.js";
import { attentionCapabilities } from "./capabilities.js";
import { allocateOutputs } from "./head.js";
import { spansOf } from "./head-groups.js";
import { CpuCache } from "./kv-cache.js";
import { CpuMemory } from "./layer-memory.js";
import { MergeCache } from "./merge-cache.js";
import { LayerPlanner } from "./planned-layers.js";
import { RotaryTables } from "./rotary-table.js";
import { type Loaded, type RunEngine, type RunWork, runBundle } from "./run-bundle.js";
import { type Runtime, Sessions } from "./sessions.js";
import { spareShare } from "./spared-rows.js";
import { bundleUnits, splitCached, splitSequences, unitLimits } from "./units.js";
import type { ModelWeights } from "./weights.js";

/** A model in ONNX Runtime: one session per layer shape, whose weights are inputs. */
export class CpuRunner implements Runner {
  readonly model: MoeModel;
  readonly #guard: RunnerGuard<Loaded>;
  readonly #engine: RunEngine;

  constructor(
    runtime: Runtime,
    model: MoeModel,
    range: LayerRange,
    weights: ModelWeights,
    settings: CpuSettings,
    sessions = new Sessions(runtime, settings.threads),
    limits = unitLimits(model),
  ) {
    this.model = model;
    const merges = new MergeCache(runtime, settings.mergeCacheBytes);
    const planner = new LayerPlanner(runtime, model, weights, merges);
    const guard = new RunnerGuard<Loaded>(this, range, attentionCapabilities, { weights, planner });
    const rotary = new RotaryTables(runtime);
    this.#guard = guard;
    this.#engine = { runtime, model, sessions, rotary, limits, guard };
  }

  createCache(sequences: number, attention?: RunAttention): KvCache {
    const checked = this.#guard.checkCache(sequences, attention);
    return new CpuCache(this, spansOf(checked, sequences), checked?.masker);
  }

  createMemory(): LayerMemory {
    this.#guard.throwIfDisposed();
    return new CpuMemory(this);
  }

  async run(request: RunRequest): Promise<RunResult> {
    const { checked, plans } = this.#guard.checkRun(request);
    const cache = checkOwned(this, CpuCache, request.cache, "cache");
    const memory = checkOwned(this, CpuMemory, request.memory, "memory");
    const { runtime, model, limits } = this.#engine;
    const { signal, tap, sequences } = request;
    const { rows, targets, tokens } = checked;
    const needed = { ...checked, to: lastLayer(request, checked) };
    const experts = this.#guard.loaded.planner.plan(needed, plans, signal);
    const spares = model.layers.some((layer) => spareShare(layer, experts.get(layer.index)) > 0);
    const masker = cache ? cache.masker : checked.attention?.masker;
    const work: RunWork = {
      request,
      checked: needed,
      experts,
      spares,
      masker,
      outputs: rows ? allocateOutputs(rows.length, model.vocabSize, targets !== undefined) : {},
      boundaries: new Map(
        request.boundaries?.map((layer) => [layer, new Float32Array(tokens * model.hiddenSize)]),
      ),
      // Which tokens are spared decides what units are, and sparing needs what the memory does not hold.
      memory: spares ? undefined : memory,
      tokenLayers: 0,
      expertTokens: 0,
    };
    // Probabilities of attention, and masks of every head, are as large as its scores.
    const matrices = 1 + Number(spares) + Number(masker !== undefined);
    const own = { ...limits, scores: limits.scores / matrices };
    const spans = spansOf(checked.attention, sequences.length);
    const units = cache
      ? splitCached(runtime, model, needed, own, cache)
      : splitSequences(runtime, model, needed, own, tap !== undefined, spans);
    try {
      let first = 0;
      for (const bundle of bundleUnits(units, spares || masker !== undefined)) {
        await runBundle(this.#engine, bundle, first, work);
        first += bundle.length;
      }
    } catch (error) {
      cache?.rollBack();
      throw error;
    }
    cache?.commit(sequences);
    const { boundaries, outputs, tokenLayers, expertTokens } = work;
    return { ...outputs, boundaries, tokenLayers, expertTokens };
  }

  async dispose(): Promise<void> {
    this.#guard.release();
    await this.#engine.sessions.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}

/** Layer behind which nothing that was asked for is computed. */
function lastLayer(
  { boundaries = [], positions, tap, cache, attention }: RunRequest,
  checked: CheckedRunRequest,
): number {
  if (positions || tap || cache || attention?.masker) return checked.to;
  return Math.max(checked.from, ...boundaries);
}
