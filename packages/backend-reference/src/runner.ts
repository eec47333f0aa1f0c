import {
  type AttentionCapabilities,
  type CheckedAttention,
  type CheckedRunRequest,
  CoppiceError,
  checkOwned,
  type KvCache,
  type LayerPlan,
  type LayerRange,
  layerKey,
  limitableLayers,
  type MoeModel,
  type MoeSpec,
  type RunAttention,
  type Runner,
  RunnerGuard,
  type RunRequest,
  type RunResult,
  skipRuleOf,
  sparedTokens,
  throwIfAborted,
  tokenImportance,
} from "@coppice/core";
import { attend } from "./attention.js";
import { runHead } from "./head.js";
import { ReferenceCache } from "./kv-cache.js";
import { runMlp } from "./mlp.js";
import { runMoe } from "./moe.js";
import { normalize } from "./norm.js";
import { type PlannedExperts, planExperts } from "./plan-weights.js";
import { Rotary } from "./rotary.js";
import { floats, Scratch } from "./scratch.js";
import type { LayerWeights, Mlp, ModelWeights, Router } from "./weights.js";

/** Longest stretch, in milliseconds, for which a run blocks its thread while more layers follow. */
const sliceMs = 50;

/** Keys are chosen query by query, so every limit is known. */
export const attentionCapabilities: AttentionCapabilities = {
  spans: true,
  prefillMasks: true,
  decodePages: true,
};

/**
 * Residual stream, boundaries and every stored activation are float32, so running layers 0 to k and then k to the
 * end gives the bits of one run. Merged experts of the latest plan are kept per layer.
 */
export class ReferenceRunner implements Runner {
  readonly model: MoeModel;
  readonly #guard: RunnerGuard<ModelWeights>;
  /** By layer; undefined where positions do not rotate. */
  readonly #rotaries: (Rotary | undefined)[];
  readonly #scratch = new Scratch();
  readonly #planned = new Map<number, { key: string; experts: PlannedExperts }>();
  /** Layers whose attention a plan or a masker may limit. */
  readonly #limitable: ReadonlySet<number>;
  /** Runs share the scratch arrays, so there is one at a time. */
  #running = false;

  constructor(model: MoeModel, loaded: LayerRange, weights: ModelWeights) {
    this.model = model;
    this.#guard = new RunnerGuard(this, loaded, attentionCapabilities, weights);
    this.#limitable = new Set(limitableLayers(model).map(({ index }) => index));
    const shared = new Map<string, Rotary>();
    this.#rotaries = model.layers.map(({ attention }) => {
      const rotary = attention.kind === "other" ? undefined : attention.rotary;
      if (!rotary) return undefined;
      const key = JSON.stringify(rotary);
      const known = shared.get(key) ?? new Rotary(rotary);
      shared.set(key, known);
      return known;
    });
  }

  createCache(sequences: number, attention?: RunAttention): KvCache {
    const checked = this.#guard.checkCache(sequences, attention);
    return new ReferenceCache(this, this.model.layers.length, sequences, checked);
  }

  async run(request: RunRequest): Promise<RunResult> {
    const { checked, plans } = this.#guard.checkRun(request);
    if (this.#running) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        "a run began while another run of the same runner was going on",
        {
          hint: "await each run before the next, or load one runner per task",
        },
      );
    }
    this.#running = true;
    try {
      return await this.#run(request, checked, plans);
    } finally {
      this.#running = false;
    }
  }

  async dispose(): Promise<void> {
    this.#guard.release();
    this.#planned.clear();
    this.#scratch.clear();
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
    const { tokens, from, to, rows, targets } = checked;
    const cache = checkOwned(this, ReferenceCache, request.cache, "cache");
    const hidden = floats(tokens * model.hiddenSize);
    if (request.hidden) hidden.set(request.hidden);
    else this.#embed(request.sequences, hidden);

    const boundaries = new Map<number, Float32Array>();
    let expertTokens = 0;
    let sliceStart = performance.now();
    for (let layer = from; layer < to; layer++) {
      expertTokens += this.#runLayer(layer, request, checked, plans.get(layer), cache, hidden);
      if (request.boundaries?.includes(layer + 1)) boundaries.set(layer + 1, hidden.slice());
      if (layer + 1 === to) break;
      if (performance.now() - sliceStart > sliceMs) {
        await new Promise((resolve) => setTimeout(resolve, 0));
        sliceStart = performance.now();
      }
      throwIfAborted(request.signal, `running layer ${layer + 1} of ${to}`);
    }
    const { head } = this.#guard.loaded;
    const shown = head && rows ? runHead(model, head, rows, targets, hidden, this.#scratch) : {};
    cache?.commit(request.sequences);
    return { ...shown, boundaries, tokenLayers: tokens * (to - from), expertTokens };
  }

  #runLayer(
    index: number,
    request: RunRequest,
    { tokens, starts, attention }: CheckedRunRequest,
    plan: LayerPlan | undefined,
    cache: ReferenceCache | undefined,
    hidden: Float32Array,
  ): number {
    const weights = this.#guard.loaded.layers.get(index) as LayerWeights;
    const spec = this.model.layers[index] as MoeModel["layers"][number];
    const size = this.model.hiddenSize;
    const scratch = this.#scratch;
    const normed = scratch.take("normed", hidden.length);
    const added = scratch.take("added", hidden.length);
    normalize(hidden, tokens, size, weights.attentionNorm, normed);
    const { residualScale = 1 } = this.model;
    if (spec.attention.kind === "other") throw new TypeError(`layer ${index} is ${spec.attention.name}`);
    const limits: CheckedAttention | undefined = cache ? cache.attention : attention;
    const limited = this.#limitable.has(index) ? limits : undefined;
    const batch = { tokens, starts, cache, layer: index, attention: limited };
    const { feedForward } = spec;
    let expertTokens = 0;
    const spare = (feedForward.kind === "moe" && skipRuleOf(feedForward.router, plan)?.spare) || 0;
    const received = spare > 0 ? new Float64Array(tokens) : undefined;
    attend(spec.attention, weights.attention, this.#rotaries[index], batch, normed, added, scratch, received);
    addTo(hidden, residualScale, added);
    normalize(hidden, tokens, size, weights.feedForwardNorm, normed);
    if (feedForward.kind === "moe") {
      const experts = this.#experts(index, feedForward, weights, plan);
      const { shared, sharedGate } = weights;
      const call = {
        layer: index,
        spec: feedForward,
        plan,
        experts,
        shared,
        sharedGate,
        residual: hidden,
        tap: request.tap,
        spared: received && spareTokens(received, spare, spec.attention.heads, normed, starts),
      };
      expertTokens = runMoe(call, normed, tokens, added, scratch);
    } else {
      runMlp(weights.mlps[0] as Mlp, normed, tokens, size, added, scratch);
    }
    addTo(hidden, residualScale, added);
    return expertTokens;
  }

  #experts(layer: number, spec: MoeSpec, weights: LayerWeights, plan: LayerPlan | undefined): PlannedExperts {
    const { mlps } = weights;
    const router = weights.router as Router;
    if (!plan) return planExperts(spec, mlps, router, undefined);
    const key = layerKey(plan);
    const known = this.#planned.get(layer);
    if (known?.key === key) return known.experts;
    const experts = planExperts(spec, mlps, router, plan);
    this.#planned.set(layer, { key, experts });
    return experts;
  }

  #embed(sequences: readonly Int32Array[], hidden: Float32Array): void {
    const embedding = this.#guard.loaded.embedding as Float32Array;
    const { hiddenSize: size, embeddingScale } = this.model;
    let row = 0;
    for (const sequence of sequences) {
      for (const token of sequence)
        hidden.set(embedding.subarray(token * size, (token + 1) * size), row++ * size);
    }
    if (embeddingScale !== undefined)
      for (let i = 0; i < hidden.length; i++) hidden[i] = (hidden[i] as number) * embeddingScale;
  }
}

function addTo(sum: Float32Array, scale: number, added: Float32Array): void {
  for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] as number) + scale * (added[i] as number);
}

/** The tokens that skip nothing, sequence by sequence; none where a sequence runs one token alone. */
function spareTokens(
  received: Float64Array,
  share: number,
  heads: number,
  input: Float32Array,
  starts: Int32Array,
): Uint8Array {
  const hidden = input.length / received.length;
  const spared = new Uint8Array(received.length);
  for (let s = 0; s + 1 < starts.length; s++) {
    const [start, end] = [starts[s] as number, starts[s + 1] as number];
    if (end - start < 2) continue;
    const inputs = input.subarray(start * hidden, end * hidden);
    spared.set(sparedTokens(tokenImportance(received.subarray(start, end), heads, inputs), share), start);
  }
  return spared;
}
