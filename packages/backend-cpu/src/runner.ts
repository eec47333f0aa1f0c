import {
  type AttentionMasker,
  type CheckedRunRequest,
  CoppiceError,
  checkRunAttention,
  checkRunRequest,
  type DecoderLayer,
  type KvCache,
  type LayerMemory,
  type LayerRange,
  type MoeModel,
  type RunAttention,
  type Runner,
  type RunRequest,
  type RunResult,
  throwIfAborted,
} from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import type { Attended } from "./attention.js";
import type { CpuSettings } from "./backend.js";
import { attentionCapabilities } from "./capabilities.js";
import { runFeedForward } from "./feed-forward.js";
import { allocateOutputs, type HeadOutputs, runHead } from "./head.js";
import { spansOf } from "./head-groups.js";
import { CpuCache } from "./kv-cache.js";
import { CpuMemory, type UnitMemory } from "./layer-memory.js";
import { layerSights } from "./layer-sights.js";
import { MergeCache } from "./merge-cache.js";
import { type PackedRows, packRows } from "./packed-rows.js";
import { LayerPlanner, type PlannedExperts } from "./planned-layers.js";
import { recallAttention } from "./recall-attention.js";
import { RotaryTables } from "./rotary-table.js";
import { type Feeds, type Runtime, Sessions } from "./sessions.js";
import { sparedRows, spareShare } from "./spared-rows.js";
import { UnitInputs } from "./unit-inputs.js";
import { gatherRows, placesOf, spreadRows, type WantedRows, wantedRows } from "./unit-rows.js";
import {
  bundleUnits,
  type Piece,
  splitCached,
  splitSequences,
  type Unit,
  type UnitLimits,
  unitLimits,
} from "./units.js";
import type { LayerWeights, ModelWeights } from "./weights.js";

/** What one call of `run` computes, over all its units. */
interface Work {
  readonly request: RunRequest;
  readonly checked: CheckedRunRequest;
  readonly experts: ReadonlyMap<number, PlannedExperts>;
  /** Some layer spares tokens that it compares with the rest of their sequence. */
  readonly spares: boolean;
  /** Decides layer by layer what tokens see. */
  readonly masker: AttentionMasker | undefined;
  readonly outputs: HeadOutputs;
  /** Layer index -> [T, hidden]. */
  readonly boundaries: ReadonlyMap<number, Float32Array>;
  /** Of layer `from`, where it may be used. */
  readonly memory: CpuMemory | undefined;
  /** Rows that went through a layer, over all layers so far. */
  tokenLayers: number;
  /** Choices that experts ran for. */
  expertTokens: number;
}

/** A unit on its way through the layers. */
interface Passage {
  readonly unit: Unit;
  /** Number of the unit among those of the run. */
  readonly index: number;
  readonly packed: PackedRows;
  readonly wanted: WantedRows;
  readonly inputs: UnitInputs;
  /** [N], place of each row in the packed order of the request, when there is a tap. */
  readonly places: Int32Array;
  /** Input of the next layer, [N, hidden]. */
  hidden: Tensor;
}

/** A unit behind the attention of a layer. */
interface AttendedPassage extends Attended {
  readonly passage: Passage;
  readonly pieces: readonly Piece[];
  readonly memory: UnitMemory | undefined;
}

/** What is let go when the runner is disposed. */
interface Loaded {
  readonly weights: ModelWeights;
  readonly planner: LayerPlanner;
}

/** A model in ONNX Runtime: one session per layer shape, whose weights are inputs. */
export class CpuRunner implements Runner {
  readonly model: MoeModel;
  readonly #runtime: Runtime;
  readonly #range: LayerRange;
  readonly #limits: UnitLimits;
  readonly #sessions: Sessions;
  readonly #rotary: RotaryTables;
  #loaded: Loaded | undefined;

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
    this.#runtime = runtime;
    this.#range = range;
    this.#limits = limits;
    this.#sessions = sessions;
    this.#rotary = new RotaryTables(runtime);
    const merges = new MergeCache(runtime, settings.mergeCacheBytes);
    this.#loaded = { weights, planner: new LayerPlanner(runtime, model, weights, merges) };
  }

  createCache(sequences: number, attention?: RunAttention): KvCache {
    this.#live();
    const lengths = new Array<number>(sequences).fill(this.model.contextLength);
    const checked = attention && checkRunAttention(this.model, attention, lengths, attentionCapabilities);
    return new CpuCache(this, spansOf(checked, sequences), checked?.masker);
  }

  createMemory(): LayerMemory {
    this.#live();
    return new CpuMemory(this);
  }

  async run(request: RunRequest): Promise<RunResult> {
    const { planner } = this.#live();
    const { signal, plan, tap, sequences } = request;
    throwIfAborted(signal, "starting a run");
    const checked = checkRunRequest(this.model, request, this.#range, attentionCapabilities);
    const cache = this.#ownCache(request.cache);
    const { hiddenSize, vocabSize } = this.model;
    const { rows, targets } = checked;
    const needed = { ...checked, to: lastLayer(request, checked) };
    const experts = planner.plan(needed, plan, signal);
    const spares = this.model.layers.some((layer) => spareShare(layer, experts.get(layer.index)) > 0);
    const memory = this.#ownMemory(request.memory);
    const masker = cache ? cache.masker : checked.attention?.masker;
    const work: Work = {
      request,
      checked: needed,
      experts,
      spares,
      masker,
      outputs: rows ? allocateOutputs(rows.length, vocabSize, targets !== undefined) : {},
      boundaries: new Map(
        request.boundaries?.map((layer) => [layer, new Float32Array(checked.tokens * hiddenSize)]),
      ),
      // Which tokens are spared decides what units are, and sparing needs what the memory does not hold.
      memory: spares ? undefined : memory,
      tokenLayers: 0,
      expertTokens: 0,
    };
    // Probabilities of attention, and masks of every head, are as large as its scores.
    const matrices = 1 + Number(spares) + Number(masker !== undefined);
    const limits = { ...this.#limits, scores: this.#limits.scores / matrices };
    const units = cache
      ? splitCached(this.#runtime, this.model, needed, limits, cache)
      : splitSequences(
          this.#runtime,
          this.model,
          needed,
          limits,
          tap !== undefined,
          spansOf(checked.attention, sequences.length),
        );
    try {
      let first = 0;
      for (const bundle of bundleUnits(units, spares || masker !== undefined)) {
        await this.#runBundle(bundle, first, work);
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
    this.#loaded = undefined;
    await this.#sessions.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  /** Takes units through all layers, layer by layer. */
  async #runBundle(units: readonly Unit[], first: number, work: Work): Promise<void> {
    const passages = units.map((unit, i) => this.#enter(unit, first + i, work));
    for (let index = work.checked.from; index < work.checked.to; index++) {
      await this.#runLayer(index, passages, work);
    }
    for (const { hidden, wanted } of passages) {
      if (wanted.rows.length === 0) continue;
      throwIfAborted(work.request.signal, "computing logits");
      const rows = hidden.data as Float32Array;
      const picked =
        hidden.dims[0] === wanted.rows.length ? rows : gatherRows(rows, wanted.rows, this.model.hiddenSize);
      const { checked, outputs } = work;
      const head = this.#live().weights.head as Feeds;
      const { targets } = checked;
      await runHead(this.#runtime, this.#sessions, this.model, head, picked, wanted.picks, targets, outputs);
    }
  }

  /** A unit before the first layer. */
  #enter(unit: Unit, index: number, { request, checked, spares, masker }: Work): Passage {
    const { sequences, hidden: given, tap } = request;
    const { hiddenSize, vocabSize } = this.model;
    // Tokens that begin alike are neither spared nor masked alike: that depends on what follows.
    const share = !unit.cache && !tap && !spares && !masker;
    const input = given && { values: given, size: hiddenSize };
    const packed = packRows(unit.pieces, sequences, checked, vocabSize, share, input);
    return {
      unit,
      index,
      packed,
      wanted: wantedRows(unit, packed, checked),
      inputs: new UnitInputs(this.#runtime, unit.pieces, packed),
      places: tap ? placesOf(unit, checked) : new Int32Array(0),
      hidden: this.#inputRows(unit, packed, request, checked),
    };
  }

  async #runLayer(index: number, passages: readonly Passage[], work: Work): Promise<void> {
    const { boundaries } = work;
    const { signal, tap } = work.request;
    const { layers, residualScale, hiddenSize } = this.model;
    const layer = layers[index] as DecoderLayer;
    const weights = this.#live().weights.layers.get(index) as LayerWeights;
    const experts = work.experts.get(index);
    const several = passages.some(({ unit }) => unit.pieces.some(({ end }) => end > 1));
    const spare = several ? spareShare(layer, experts) : 0;
    // Behind the last layer only rows whose logits are wanted matter; what is spared depends on all of them.
    const last = index + 1 === layers.length && !boundaries.has(index + 1) && !tap;
    const memory = index === work.checked.from && experts ? work.memory : undefined;
    const sights =
      work.masker &&
      (await layerSights(work.masker, {
        sessions: this.#sessions,
        rotary: this.#rotary,
        layer,
        hiddenSize,
        weights: weights.attention,
        request: work.request,
        passages,
      }));
    const attended: AttendedPassage[] = [];
    for (const passage of passages) {
      const { unit, wanted, inputs, hidden, packed } = passage;
      const cache = unit.cache?.(index);
      // Only the cache may still want something of a last layer without wanted rows: its keys and values.
      if (last && wanted.rows.length === 0 && !cache) continue;
      throwIfAborted(signal, `running layer ${index}`);
      const some = wanted.rows.length > 0 ? wanted.rows : Int32Array.of(0);
      const selected = last && spare === 0 ? some : undefined;
      const known = unit.cache
        ? undefined
        : memory?.unit(index, passage.index, (selected ?? packed.unpad).length);
      const result = await recallAttention(this.#runtime, this.#sessions, known, {
        layer,
        hidden,
        weights: weights.attention,
        router: experts?.router ?? {},
        unit: inputs,
        length: unit.length,
        rotary: this.#rotary,
        cache,
        spans: unit.spans?.layers[index],
        sights,
        selected,
        received: spare > 0,
      });
      attended.push({ ...result, passage, pieces: unit.pieces, memory: known });
    }
    const spared = spare > 0 ? sparedRows(attended, layer, spare) : undefined;
    for (const [i, { passage, normed, residual, logits, memory }] of attended.entries()) {
      const { unit, packed, places, wanted } = passage;
      if (last && wanted.rows.length === 0) continue;
      throwIfAborted(signal, `running layer ${index}`);
      const { result, expertTokens } = await runFeedForward(this.#runtime, this.#sessions, {
        layer,
        weights,
        experts,
        residualScale,
        normed,
        residual,
        logits,
        spared: spared?.[i],
        tap,
        places,
        everyBytes: this.#limits.everyBytes,
        cached: unit.cache !== undefined,
        memory,
        signal,
      });
      passage.hidden = result;
      work.expertTokens += expertTokens;
      work.tokenLayers += passage.hidden.dims[0] as number;
      const boundary = boundaries.get(index + 1);
      const values = passage.hidden.data as Float32Array;
      if (boundary) spreadRows(unit, packed, work.checked, values, hiddenSize, boundary);
    }
  }

  /** Input rows of the first layer to run: embeddings, or what the request gives. */
  #inputRows(unit: Unit, packed: PackedRows, request: RunRequest, { starts }: CheckedRunRequest): Tensor {
    const { hiddenSize, embeddingScale } = this.model;
    const { hidden: given, sequences } = request;
    const source = given ?? (this.#live().weights.embedding as Float32Array);
    const rows = new Float32Array(packed.count * hiddenSize);
    for (const [p, { sequence, begin, end }] of unit.pieces.entries()) {
      const ids = sequences[sequence] as Int32Array;
      for (let i = begin; i < end; i++) {
        const token = (packed.offsets[p] as number) + i - begin;
        const row = packed.rowOf[token] as number;
        if (packed.tokenOf[row] !== token) continue;
        const from = (given ? (starts[sequence] as number) + i : (ids[i] as number)) * hiddenSize;
        rows.set(source.subarray(from, from + hiddenSize), row * hiddenSize);
      }
    }
    if (!given && embeddingScale !== undefined) {
      for (let i = 0; i < rows.length; i++) rows[i] = (rows[i] as number) * embeddingScale;
    }
    return new this.#runtime.Tensor("float32", rows, [packed.count, hiddenSize]);
  }

  #ownMemory(memory: LayerMemory | undefined): CpuMemory | undefined {
    if (memory === undefined) return undefined;
    if (memory instanceof CpuMemory && memory.owner === this) return memory;
    throw new CoppiceError("COPPICE_USAGE", "the memory was made by another runner", {
      hint: "make it with createMemory of the runner that uses it",
    });
  }

  #ownCache(cache: KvCache | undefined): CpuCache | undefined {
    if (cache === undefined) return undefined;
    if (cache instanceof CpuCache && cache.owner === this) return cache;
    throw new CoppiceError("COPPICE_USAGE", "the cache was made by another runner", {
      hint: "make it with createCache of the runner that uses it",
    });
  }

  #live(): Loaded {
    if (this.#loaded) return this.#loaded;
    throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the runner was disposed");
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
