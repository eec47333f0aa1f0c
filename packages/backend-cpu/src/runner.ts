import {
  type CheckedRunRequest,
  CoppiceError,
  checkRunRequest,
  type DecoderLayer,
  type KvCache,
  type MoeModel,
  type Runner,
  type RunRequest,
  type RunResult,
  throwIfAborted,
} from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import { runAttention } from "./attention.js";
import type { CpuSettings } from "./backend.js";
import { runFeedForward } from "./feed-forward.js";
import { allocateOutputs, type HeadOutputs, runHead } from "./head.js";
import { CpuCache } from "./kv-cache.js";
import { MergeCache } from "./merge-cache.js";
import { type PackedRows, packRows } from "./packed-rows.js";
import { type PlannedExperts, planLayers } from "./planned-layers.js";
import { RotaryTables } from "./rotary-table.js";
import { type Runtime, Sessions } from "./sessions.js";
import { UnitInputs } from "./unit-inputs.js";
import { splitCached, splitSequences, type Unit, type UnitLimits, unitLimits } from "./units.js";
import type { LayerWeights, ModelWeights } from "./weights.js";

/** What one call of `run` computes, over all its units. */
interface Work {
  readonly request: RunRequest;
  readonly checked: CheckedRunRequest;
  readonly experts: ReadonlyMap<number, PlannedExperts>;
  readonly outputs: HeadOutputs;
  /** Layer index -> [T, hidden]. */
  readonly boundaries: ReadonlyMap<number, Float32Array>;
}

/** A model in ONNX Runtime: one session per layer shape, whose weights are inputs. */
export class CpuRunner implements Runner {
  readonly model: MoeModel;
  readonly #runtime: Runtime;
  readonly #weights: ModelWeights;
  readonly #limits: UnitLimits;
  readonly #sessions: Sessions;
  readonly #merges: MergeCache;
  readonly #rotary: RotaryTables;
  #disposed = false;

  constructor(
    runtime: Runtime,
    model: MoeModel,
    weights: ModelWeights,
    settings: CpuSettings,
    sessions = new Sessions(runtime, settings.threads),
    limits = unitLimits(model),
  ) {
    this.model = model;
    this.#runtime = runtime;
    this.#weights = weights;
    this.#limits = limits;
    this.#sessions = sessions;
    this.#rotary = new RotaryTables(runtime);
    this.#merges = new MergeCache(runtime, settings.mergeCacheBytes);
  }

  createCache(sequences: number): KvCache {
    this.#requireLive();
    return new CpuCache(this, sequences);
  }

  async run(request: RunRequest): Promise<RunResult> {
    this.#requireLive();
    const { signal, plan, tap, sequences } = request;
    throwIfAborted(signal, "starting a run");
    const checked = checkRunRequest(this.model, request);
    const cache = this.#ownCache(request.cache);
    const { hiddenSize, vocabSize } = this.model;
    const { rows, targets } = checked;
    const to = lastLayer(request, checked);
    const work: Work = {
      request,
      checked: { ...checked, to },
      experts: planLayers(
        this.#runtime,
        this.model,
        this.#weights,
        this.#merges,
        { ...checked, to },
        plan,
        signal,
      ),
      outputs: rows ? allocateOutputs(rows.length, vocabSize, targets !== undefined) : {},
      boundaries: new Map(
        request.boundaries?.map((layer) => [layer, new Float32Array(checked.tokens * hiddenSize)]),
      ),
    };
    const limits = this.#limits;
    const units = cache
      ? splitCached(this.#runtime, this.model, checked, limits, cache)
      : splitSequences(this.#runtime, this.model, checked, limits, tap !== undefined);
    for (const unit of units) await this.#runUnit(unit, work);
    cache?.commit(sequences);
    // What was asked for, not what shared beginnings and unwanted last rows left of it: the count of every backend.
    const tokenLayers = checked.tokens * (checked.to - checked.from);
    return { ...work.outputs, boundaries: work.boundaries, tokenLayers };
  }

  async dispose(): Promise<void> {
    this.#disposed = true;
    await this.#sessions.dispose();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  /** Takes one unit through all layers. */
  async #runUnit(unit: Unit, work: Work): Promise<void> {
    const { request, checked, boundaries } = work;
    const { hiddenSize, vocabSize, layers } = this.model;
    const { sequences, hidden: given, tap, signal } = request;
    const share = !unit.cache && !tap;
    const input = given && { values: given, size: hiddenSize };
    const packed = packRows(unit.pieces, sequences, checked, vocabSize, share, input);
    const wanted = wantedRows(unit, packed, checked);
    const inputs = new UnitInputs(this.#runtime, unit.pieces, packed);
    const places = placesOf(unit, checked);
    let hidden = this.#inputRows(unit, packed, request, checked);
    for (let index = checked.from; index < checked.to; index++) {
      throwIfAborted(signal, `running layer ${index}`);
      const layer = layers[index] as DecoderLayer;
      const last = index + 1 === layers.length && !boundaries.has(index + 1) && !tap;
      const selected = last ? wanted.rows : undefined;
      const cache = unit.cache?.(index);
      // Only the cache may still want something of a last layer without wanted rows: its keys and values.
      if (selected?.length === 0 && !cache) break;
      const weights = this.#weights.layers[index] as LayerWeights;
      const experts = work.experts.get(index);
      const { normed, residual, logits } = await runAttention(this.#runtime, this.#sessions, {
        layer,
        hidden,
        weights: weights.attention,
        router: experts?.router ?? {},
        unit: inputs,
        length: unit.length,
        rotary: this.#rotary,
        cache,
        selected: selected?.length === 0 ? Int32Array.of(0) : selected,
      });
      if (selected?.length === 0) break;
      hidden = await runFeedForward(this.#runtime, this.#sessions, {
        layer,
        weights,
        experts,
        residualScale: this.model.residualScale,
        normed,
        residual,
        logits,
        tap,
        places,
      });
      const boundary = boundaries.get(index + 1);
      if (boundary) spreadRows(unit, packed, checked, hidden.data as Float32Array, hiddenSize, boundary);
    }
    if (wanted.rows.length > 0) {
      throwIfAborted(signal, "computing logits");
      const values = hidden.data as Float32Array;
      const picked =
        hidden.dims[0] === wanted.rows.length ? values : gatherRows(values, wanted.rows, hiddenSize);
      const { targets } = checked;
      const { outputs } = work;
      await runHead(
        this.#runtime,
        this.#sessions,
        this.model,
        this.#weights,
        picked,
        wanted.picks,
        targets,
        outputs,
      );
    }
  }

  /** Input rows of the first layer to run: embeddings, or what the request gives. */
  #inputRows(unit: Unit, packed: PackedRows, request: RunRequest, { starts }: CheckedRunRequest): Tensor {
    const { hiddenSize, embeddingScale } = this.model;
    const { embedding } = this.#weights;
    const { hidden: given, sequences } = request;
    const rows = new Float32Array(packed.count * hiddenSize);
    for (const [p, { sequence, begin, end }] of unit.pieces.entries()) {
      const ids = sequences[sequence] as Int32Array;
      for (let i = begin; i < end; i++) {
        const token = (packed.offsets[p] as number) + i - begin;
        const row = packed.rowOf[token] as number;
        if (packed.tokenOf[row] !== token) continue;
        const from = (given ? (starts[sequence] as number) + i : (ids[i] as number)) * hiddenSize;
        rows.set((given ?? embedding).subarray(from, from + hiddenSize), row * hiddenSize);
      }
    }
    if (!given && embeddingScale !== undefined) {
      for (let i = 0; i < rows.length; i++) rows[i] = (rows[i] as number) * embeddingScale;
    }
    return new this.#runtime.Tensor("float32", rows, [packed.count, hiddenSize]);
  }

  #ownCache(cache: KvCache | undefined): CpuCache | undefined {
    if (cache === undefined) return undefined;
    if (cache instanceof CpuCache && cache.owner === this) return cache;
    throw new CoppiceError("COPPICE_USAGE", "the cache was made by another runner", {
      hint: "make it with createCache of the runner that uses it",
    });
  }

  #requireLive(): void {
    if (this.#disposed) throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the runner was disposed");
  }
}

/** Layer behind which nothing that was asked for is computed. */
function lastLayer(
  { boundaries = [], positions, tap, cache }: RunRequest,
  checked: CheckedRunRequest,
): number {
  if (positions || tap || cache) return checked.to;
  return Math.max(checked.from, ...boundaries);
}

/** Rows of a unit whose logits are wanted, ascending and each once, and the wanted positions that they serve. */
function wantedRows({ pieces }: Unit, packed: PackedRows, { rows, starts }: CheckedRunRequest) {
  const found: { index: number; row: number }[] = [];
  for (const [p, { sequence, begin, end }] of rows ? pieces.entries() : []) {
    const start = starts[sequence] as number;
    const offset = (packed.offsets[p] as number) - begin - start;
    for (
      let index = lowerBound(rows as Int32Array, start + begin);
      index < (rows as Int32Array).length;
      index++
    ) {
      const at = (rows as Int32Array)[index] as number;
      if (at >= start + end) break;
      found.push({ index, row: packed.rowOf[offset + at] as number });
    }
  }
  const distinct = Int32Array.from(new Set(found.map(({ row }) => row))).sort();
  const order = new Map(Array.from(distinct, (row, i) => [row, i]));
  const picks = found.map(({ index, row }) => ({ index, row: order.get(row) as number }));
  return { rows: distinct, picks: picks.sort((a, b) => a.row - b.row || a.index - b.index) };
}

/** First index of an ascending array whose value is at least `least`. */
function lowerBound(values: Int32Array, least: number): number {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((values[middle] as number) < least) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Places of the tokens of a unit in the packed order of the request. */
function placesOf({ pieces }: Unit, { starts }: CheckedRunRequest): Int32Array {
  const places = pieces.map(({ sequence, begin, end }) =>
    Int32Array.from({ length: end - begin }, (_, i) => (starts[sequence] as number) + begin + i),
  );
  return Int32Array.from(places.flatMap((of) => Array.from(of)));
}

/** Copies the row of every token of a unit to its place in the packed order of the request. */
function spreadRows(
  { pieces }: Unit,
  { offsets, rowOf }: PackedRows,
  { starts }: CheckedRunRequest,
  rows: Float32Array,
  size: number,
  out: Float32Array,
): void {
  for (const [p, { sequence, begin, end }] of pieces.entries()) {
    for (let i = begin; i < end; i++) {
      const row = rowOf[(offsets[p] as number) + i - begin] as number;
      out.set(rows.subarray(row * size, (row + 1) * size), ((starts[sequence] as number) + i) * size);
    }
  }
}

function gatherRows(rows: Float32Array, wanted: Int32Array, size: number): Float32Array {
  const picked = new Float32Array(wanted.length * size);
  for (const [i, row] of wanted.entries()) picked.set(rows.subarray(row * size, (row + 1) * size), i * size);
  return picked;
}
