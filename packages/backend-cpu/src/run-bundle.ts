import {
  type AttentionMasker,
  type CheckedRunRequest,
  type DecoderLayer,
  type MoeModel,
  type RunnerGuard,
  type RunRequest,
  throwIfAborted,
} from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import type { Attended } from "./attention.js";
import { runFeedForward } from "./feed-forward.js";
import { type HeadOutputs, runHead } from "./head.js";
import type { CpuMemory, UnitMemory } from "./layer-memory.js";
import { layerSights } from "./layer-sights.js";
import { type PackedRows, packRows } from "./packed-rows.js";
import type { LayerPlanner, PlannedExperts } from "./planned-layers.js";
import { recallAttention } from "./recall-attention.js";
import type { RotaryTables } from "./rotary-table.js";
import type { Feeds, Runtime, Sessions } from "./sessions.js";
import { sparedRows, spareShare } from "./spared-rows.js";
import { UnitInputs } from "./unit-inputs.js";
import { gatherRows, placesOf, spreadRows, type WantedRows, wantedRows } from "./unit-rows.js";
import type { Piece, Unit, UnitLimits } from "./units.js";
import type { LayerWeights, ModelWeights } from "./weights.js";

/** What is let go when a runner is disposed. */
export interface Loaded {
  readonly weights: ModelWeights;
  readonly planner: LayerPlanner;
}

/** What the runs of a runner share. */
export interface RunEngine {
  readonly runtime: Runtime;
  readonly model: MoeModel;
  readonly sessions: Sessions;
  readonly rotary: RotaryTables;
  readonly limits: UnitLimits;
  readonly guard: RunnerGuard<Loaded>;
}

/** What one call of `run` computes, over all its units. */
export interface RunWork {
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

/**
 * Takes units through all layers, layer by layer, and what is wanted of them through the head.
 * @param first number of the first of them among the units of the run
 * @throws COPPICE_ABORTED, COPPICE_BACKEND_DISPOSED, COPPICE_BACKEND_FAILED
 */
export async function runBundle(
  engine: RunEngine,
  units: readonly Unit[],
  first: number,
  work: RunWork,
): Promise<void> {
  const { runtime, sessions, model, guard } = engine;
  const passages = units.map((unit, i) => enter(engine, unit, first + i, work));
  for (let index = work.checked.from; index < work.checked.to; index++) {
    await runLayer(engine, index, passages, work);
  }
  for (const { hidden, wanted } of passages) {
    if (wanted.rows.length === 0) continue;
    throwIfAborted(work.request.signal, "computing logits");
    const rows = hidden.data as Float32Array;
    const picked =
      hidden.dims[0] === wanted.rows.length ? rows : gatherRows(rows, wanted.rows, model.hiddenSize);
    const { checked, outputs } = work;
    const head = guard.loaded.weights.head as Feeds;
    const { targets } = checked;
    await runHead(runtime, sessions, model, head, picked, wanted.picks, targets, outputs);
  }
}

/** A unit before the first layer. */
function enter(engine: RunEngine, unit: Unit, index: number, work: RunWork): Passage {
  const { request, checked, spares, masker } = work;
  const { sequences, hidden: given, tap } = request;
  const { hiddenSize, vocabSize } = engine.model;
  // Tokens that begin alike are neither spared nor masked alike: that depends on what follows.
  const share = !unit.cache && !tap && !spares && !masker;
  const input = given && { values: given, size: hiddenSize };
  const packed = packRows(unit.pieces, sequences, checked, vocabSize, share, input);
  return {
    unit,
    index,
    packed,
    wanted: wantedRows(unit, packed, checked),
    inputs: new UnitInputs(engine.runtime, unit.pieces, packed),
    places: tap ? placesOf(unit, checked) : new Int32Array(0),
    hidden: inputRows(engine, unit, packed, request, checked),
  };
}

async function runLayer(
  { runtime, model, sessions, rotary, limits, guard }: RunEngine,
  index: number,
  passages: readonly Passage[],
  work: RunWork,
): Promise<void> {
  const { boundaries } = work;
  const { signal, tap } = work.request;
  const { layers, residualScale, hiddenSize } = model;
  const layer = layers[index] as DecoderLayer;
  const weights = guard.loaded.weights.layers.get(index) as LayerWeights;
  const experts = work.experts.get(index);
  const several = passages.some(({ unit }) => unit.pieces.some(({ end }) => end > 1));
  const spare = several ? spareShare(layer, experts) : 0;
  // Behind the last layer only rows whose logits are wanted matter; what is spared depends on all of them.
  const last = index + 1 === layers.length && !boundaries.has(index + 1) && !tap;
  const memory = index === work.checked.from && experts ? work.memory : undefined;
  const sights =
    work.masker &&
    (await layerSights(work.masker, {
      sessions,
      rotary,
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
    const result = await recallAttention(runtime, sessions, known, {
      layer,
      hidden,
      weights: weights.attention,
      router: experts?.router ?? {},
      unit: inputs,
      length: unit.length,
      rotary,
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
    const { result, expertTokens } = await runFeedForward(runtime, sessions, {
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
      everyBytes: limits.everyBytes,
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
function inputRows(
  { runtime, model, guard }: RunEngine,
  unit: Unit,
  packed: PackedRows,
  request: RunRequest,
  { starts }: CheckedRunRequest,
): Tensor {
  const { hiddenSize, embeddingScale } = model;
  const { hidden: given, sequences } = request;
  const source = given ?? (guard.loaded.weights.embedding as Float32Array);
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
  return new runtime.Tensor("float32", rows, [packed.count, hiddenSize]);
}
