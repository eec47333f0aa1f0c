import {
  type CheckedRunRequest,
  checkOwned,
  disposedRunner,
  type HeldBoundary,
  type KvCache,
  type LayerPlan,
  type LayerRange,
  type MoeModel,
  type RunAttention,
  type Runner,
  RunnerGuard,
  type RunRequest,
  type RunResult,
  skipRuleOf,
  throwIfAborted,
} from "@coppice/core";
import { drawLimit, embed, type GpuBuffer } from "@coppice/kernels-webgpu";
import { attentionUse } from "./attention-block.js";
import { attentionCapabilities, limitsOf } from "./attention-limits.js";
import { prepareBatch } from "./batch.js";
import { checkAttentionKernels } from "./check-attention-kernels.js";
import { checkBatch } from "./check-kernels.js";
import type { DeviceUse } from "./device.js";
import { checkDrawKernels, drawHead } from "./draw-head.js";
import type { GroupJob } from "./groupable.js";
import { runHead } from "./head.js";
import { BoundaryStore } from "./held-boundary.js";
import { DeviceCache } from "./kv-cache.js";
import type { LayerWeights, ModelWeights } from "./model-weights.js";
import type { MoeContext } from "./moe-block.js";
import { pace } from "./pace.js";
import { PlannedLayers } from "./planned-layers.js";
import { RotaryTables } from "./rotary-tables.js";
import { RunGroups } from "./run-groups.js";
import { runLayer } from "./run-layer.js";
import { RunQueue } from "./run-queue.js";
import { Workspace } from "./workspace.js";

/** Tokens of a run from which on the device is waited for after every layer, so that a run can be aborted on its way. */
const waitTokens = 256;

export interface RunnerSettings {
  /** Whether products of many tokens are multiplied in f16. */
  readonly half: boolean;
  /** Whether weights that are stored as codes were read as such. */
  readonly canReadCodes: boolean;
  /** Whether projections that are no codes were widened to float32. */
  readonly wide: boolean;
}

/**
 * Runs a model on a device. The residual stream and every activation are float32 and stay on the device; what comes back is what
 * a request asks for. Runs that score targets are computed together (`RunGroups`), others one by one; of these, merged experts of
 * the latest plan are kept per layer.
 */
export class WebgpuRunner implements Runner {
  readonly model: MoeModel;
  readonly #loaded: LayerRange;
  readonly #guard: RunnerGuard<ModelWeights>;
  readonly #use: DeviceUse;
  readonly #settings: RunnerSettings;
  readonly #workspace: Workspace;
  readonly #rotary: RotaryTables;
  readonly #planned: PlannedLayers;
  readonly #caches = new Set<DeviceCache>();
  readonly #boundaries: BoundaryStore;
  readonly #groups: RunGroups;
  readonly #queue: RunQueue<GroupJob>;
  readonly pace = pace;
  readonly draws: boolean;

  constructor(
    model: MoeModel,
    loaded: LayerRange,
    use: DeviceUse,
    weights: ModelWeights,
    settings: RunnerSettings,
  ) {
    this.model = model;
    // In software the host draws faster than a device that runs threads one after another.
    this.draws = !use.gpu.serial && model.vocabSize <= drawLimit;
    this.#loaded = loaded;
    this.#use = use;
    this.#guard = new RunnerGuard(this, loaded, attentionCapabilities, weights);
    this.#settings = settings;
    this.#workspace = new Workspace(use.gpu);
    this.#rotary = new RotaryTables(use.gpu);
    this.#planned = new PlannedLayers(use.gpu);
    this.#boundaries = new BoundaryStore(this, use.gpu);
    this.#groups = new RunGroups({
      gpu: use.gpu,
      model,
      loaded,
      weights,
      workspace: this.#workspace,
      rotary: this.#rotary,
      boundaries: this.#boundaries,
      operators: use.operators,
      settings,
    });
    this.#queue = new RunQueue(this.#groups);
  }

  createCache(sequences: number, attention?: RunAttention): KvCache {
    const checked = this.#guard.checkCache(sequences, attention);
    const limits = limitsOf(this.model, checked);
    const cache = new DeviceCache(this, this.#use.gpu, sequences, limits, (done) =>
      this.#caches.delete(done),
    );
    this.#caches.add(cache);
    return cache;
  }

  async run(request: RunRequest): Promise<RunResult> {
    const { checked, plans } = this.#guard.checkRun(request);
    const job = this.#groups.jobOf(request, checked, plans);
    if (job) return this.#queue.add(job, request.signal);
    return this.#queue.alone(() => this.#run(request, checked, plans));
  }

  async dispose(): Promise<void> {
    const weights = this.#guard.release();
    if (!weights) return;
    await this.#queue.end(disposedRunner());
    for (const cache of this.#caches) cache.dispose();
    this.#boundaries.dispose();
    this.#groups.dispose();
    this.#planned.dispose();
    this.#workspace.dispose();
    this.#rotary.dispose();
    weights.owned.dispose();
    await this.#use.release();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #run(
    request: RunRequest,
    checked: CheckedRunRequest,
    plans: ReadonlyMap<number, LayerPlan>,
  ): Promise<RunResult> {
    const { model } = this;
    const { gpu, operators } = this.#use;
    this.#guard.throwIfDisposed();
    gpu.throwIfFailed();
    const { tokens, from, to, rows, targets } = checked;
    const cache = checkOwned(this, DeviceCache, request.cache, "cache");
    const limits = cache?.limits ?? limitsOf(model, checked.attention);
    await checkBatch(gpu, model, this.#loaded, tokens, this.#settings);
    await checkAttentionKernels(gpu, model, this.#loaded, attentionUse(model, checked, limits));
    const { draw } = request;
    if (draw) await checkDrawKernels(gpu, draw);
    const workspace = this.#workspace;
    const size = model.hiddenSize;
    const batch = prepareBatch(model, checked, cache, limits, this.#rotary, workspace);
    const hidden = workspace.take("hidden", tokens * size);
    if (request.hidden) gpu.write(hidden, request.hidden);
    else if (request.held) this.#boundaries.restore(request.held, from, hidden, 0, 4 * tokens * size);
    else this.#embed(request.sequences, tokens, hidden);
    const counts = workspace.put("counts", new Uint32Array(1));
    const { half } = this.#settings;
    const context: MoeContext = { gpu, operators, workspace, half, hidden: size, counts };

    const boundaries = new Map<number, Float32Array>();
    const held = new Map<number, HeldBoundary>();
    let expertTokens = 0;
    for (let layer = from; layer < to; layer++) {
      const { layers } = this.#guard.loaded;
      const call = {
        model,
        index: layer,
        weights: layers.get(layer) as LayerWeights,
        plan: plans.get(layer),
      };
      expertTokens += await runLayer(context, call, this.#planned, batch, hidden, request.tap);
      if (request.boundaries?.includes(layer + 1)) {
        boundaries.set(layer + 1, await gpu.readFloats(hidden, tokens * size));
      }
      if (request.hold?.includes(layer + 1)) {
        held.set(layer + 1, this.#boundaries.hold(layer + 1, hidden, 0, 4 * tokens * size));
      }
      if (layer + 1 === to) break;
      if (tokens >= waitTokens) await gpu.idle();
      throwIfAborted(request.signal, `running layer ${layer + 1} of ${to}`);
    }
    const { head } = this.#guard.loaded;
    let shown = {};
    if (head && rows) {
      shown = draw
        ? await drawHead(context, model, head, rows, draw, hidden)
        : await runHead(context, model, head, rows, targets, hidden);
    }
    if (this.#skips(plans, from, to)) {
      const [bytes] = await gpu.read([{ buffer: counts, bytes: 4 }]);
      expertTokens += new Uint32Array(bytes as ArrayBuffer)[0] as number;
    } else if (!rows) await gpu.idle();
    cache?.commit(request.sequences);
    return { ...shown, boundaries, held, tokenLayers: tokens * (to - from), expertTokens };
  }

  #skips(plans: ReadonlyMap<number, LayerPlan>, from: number, to: number): boolean {
    return this.model.layers
      .slice(from, to)
      .some(
        ({ index, feedForward }) =>
          feedForward.kind === "moe" && skipRuleOf(feedForward.router, plans.get(index)),
      );
  }

  #embed(sequences: readonly Int32Array[], tokens: number, hidden: GpuBuffer): void {
    const ids = new Uint32Array(tokens);
    let at = 0;
    for (const sequence of sequences) {
      ids.set(sequence, at);
      at += sequence.length;
    }
    const weight = this.#guard.loaded.embedding as NonNullable<ModelWeights["embedding"]>;
    embed(this.#use.gpu, weight, this.#workspace.put("ids", ids), tokens, hidden, this.model.embeddingScale);
  }
}
