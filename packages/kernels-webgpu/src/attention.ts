import {
  type AttentionOptions,
  attentionKey,
  prefillSource,
  type QueryTile,
  queryTileFor,
} from "./attention-prefill-code.js";
import { attentionParams, type SightKind, sightBindings, sightCode } from "./attention-sight-code.js";
import { joinSource, splitKeys, splitSource } from "./attention-split-code.js";
import type { Gpu } from "./gpu.js";
import type { GpuBuffer } from "./gpu-buffer.js";
import { reads, writes } from "./kernel.js";
import { groupIndex, mainOf, spread, spreadThreads } from "./spread.js";

/** One sequence of a batch: its tokens of this run, and where its keys lie. */
export interface SequenceSpan {
  /** First row of the queries. */
  readonly row: number;
  readonly tokens: number;
  /** Tokens that came before. */
  readonly past: number;
  /** Row of the keys that holds position 0. */
  readonly keyRow: number;
}

/** Which queries meet which keys. */
export interface AttentionTables {
  /** Tiles of neighbouring queries: first row, rows, position of the first, row of position 0 of the keys. vec4u */
  readonly tiles: Uint32Array;
  /** Most rows of a tile. */
  readonly queryTile: QueryTile;
  /** [tokens] vec4u: position, row of position 0 of the keys, sequence, position after the last of the sequence. */
  readonly rows: Uint32Array;
  /** Most keys of a sequence. */
  readonly longest: number;
}

export function attentionTables(spans: readonly SequenceSpan[]): AttentionTables {
  const tiles: number[] = [];
  const rows = new Uint32Array(4 * spans.reduce((sum, { tokens }) => sum + tokens, 0));
  let at = 0;
  let longest = 0;
  const queryTile = queryTileFor(Math.max(...spans.map(({ tokens }) => tokens)));
  for (const [sequence, { row, tokens, past, keyRow }] of spans.entries()) {
    for (let i = 0; i < tokens; i += queryTile) {
      tiles.push(row + i, Math.min(queryTile, tokens - i), past + i, keyRow);
    }
    for (let i = 0; i < tokens; i++, at += 4) {
      rows[at] = past + i;
      rows[at + 1] = keyRow;
      rows[at + 2] = sequence;
      rows[at + 3] = past + tokens;
    }
    longest = Math.max(longest, past + tokens);
  }
  return { tiles: Uint32Array.from(tiles), queryTile, rows, longest };
}

export interface AttentionShape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  /** Factor on q·k. */
  readonly scale: number;
  /** A position sees itself and the `window - 1` before it; 0: all before it. */
  readonly window: number;
  /** A position sees only those of its own chunk of this many; 0: no chunks. */
  readonly chunk: number;
}

/** Limits of what queries see, beside window and chunk of the shape, which spans replace. */
export type AttentionSight =
  | {
      /** A span per KV head and sequence (StreamingLLM, arXiv 2309.17453; MoA, arXiv 2406.14909). */
      readonly kind: "spans";
      /**
       * [sequences, kvHeads] vec4u from entry `first` on: a position i sees key j <= i when j < sinks or j > i - window (0: all);
       * row of position 0 of keys and values; places of a ring that holds the latest positions behind the sinks, 0: no ring.
       */
      readonly table: GpuBuffer;
      readonly first: number;
      /** Rows from one position to the next: `kvHeads` where heads lie in turn. */
      readonly stride: number;
    }
  | {
      /** Blocks that are seen, of `maskTable`; for `attendPrefill` and `attentionReceived`. */
      readonly kind: "blocks";
      readonly table: GpuBuffer;
    };

export interface AttentionCall {
  readonly shape: AttentionShape;
  /** [tokens, heads, keyDim] */
  readonly queries: GpuBuffer;
  /** [key rows, kvHeads, keyDim] */
  readonly keys: GpuBuffer;
  /** [key rows, kvHeads, valueDim] */
  readonly values: GpuBuffer;
  /** Default: the shape's window and chunk alone. */
  readonly sight?: AttentionSight | undefined;
  /** [heads], logits that take part in the softmax and have no value. */
  readonly sinks?: GpuBuffer | undefined;
  readonly tokens: number;
  /** `AttentionTables.tiles`, how many there are, and most rows of one; for `attendPrefill`. */
  readonly tiles: GpuBuffer;
  readonly queryTile: QueryTile;
  readonly tileCount: number;
  /** `AttentionTables.rows` */
  readonly rows: GpuBuffer;
  /** No query sees more keys than so many. */
  readonly longest: number;
  /** [tokens, heads, valueDim] */
  readonly y: GpuBuffer;
}

/**
 * Causal attention of many queries (tiles and online softmax as in FlashAttention, arXiv 2205.14135). Tiles of keys that no query
 * of a tile sees are not read.
 */
export function attendPrefill(gpu: Gpu, call: AttentionCall): void {
  const { shape, queries, keys, values, sinks, tiles, tileCount, rows, sight, y } = call;
  const room = Math.ceil(shape.valueDim / 64);
  const options = { ...vectors(shape), room, ...kinds(call), queryTile: call.queryTile };
  const kernel = gpu.kernel(`attention-prefill ${attentionKey(options)}`, () => prefillSource(options));
  const limits = sight ? [rows, sight.table] : [];
  const buffers = [queries, keys, values, ...(sinks ? [sinks] : []), tiles, ...limits, y];
  gpu.commands.dispatch(kernel, buffers, shared(call), tileCount, shape.heads);
}

/** Bytes of the partial results of `attendSplit`. */
export function splitBytes(shape: AttentionShape, tokens: number, longest: number): number {
  return 4 * tokens * shape.heads * splitsOf(shape, longest) * (shape.valueDim + 2);
}

function splitsOf({ window, chunk }: AttentionShape, longest: number): number {
  return Math.ceil(Math.min(longest, window || longest, chunk || longest) / splitKeys);
}

/**
 * Attention of few queries over many keys: the keys are split between workgroups, whose partial results are joined by a second
 * kernel (Flash-Decoding).
 * @param partial of `splitBytes`
 */
export function attendSplit(gpu: Gpu, call: AttentionCall, partial: GpuBuffer): void {
  const { shape, queries, keys, values, sinks, tokens, rows, longest, sight, y } = call;
  if (sight?.kind === "blocks")
    throw new TypeError("queries of block masks do not see keys one after the other");
  const room = shape.keyDim <= 256 ? 64 : Math.ceil(shape.keyDim / 4);
  const options: AttentionOptions = { ...vectors(shape), room, ...kinds(call) };
  const splits = splitsOf(shape, longest);
  const params = { ...shared(call), splits };
  const kernel = gpu.kernel(`attention-split ${attentionKey(options)}`, () => splitSource(options));
  const read = [queries, keys, values, rows, ...(sight ? [sight.table] : [])];
  gpu.commands.dispatch(kernel, [...read, partial], params, tokens * shape.heads, splits);
  const join = gpu.kernel(`attention-join ${options.sinks}`, () => joinSource(options));
  const buffers = [partial, ...(sinks ? [sinks] : []), y];
  gpu.commands.dispatch(
    join,
    buffers,
    { heads: shape.heads, valueDim: shape.valueDim, splits },
    tokens * shape.heads,
  );
}

const vectors = ({ keyDim, valueDim }: AttentionShape) => ({
  keyVectors: keyDim % 4 === 0,
  valueVectors: valueDim % 4 === 0,
});

const kinds = ({ sinks, sight }: AttentionCall): { sinks: boolean; sight: SightKind } => ({
  sinks: sinks !== undefined,
  sight: sight?.kind ?? "none",
});

const shared = ({ shape, sight }: AttentionCall) => {
  const { heads, kvHeads, keyDim, valueDim, scale, window, chunk } = shape;
  const { first: sights, stride } = sight?.kind === "spans" ? sight : { first: 0, stride: 0 };
  return { heads, group: heads / kvHeads, keyDim, valueDim, scale, window, chunk, sights, stride };
};

const threads = 64;

/**
 * Attention that every token gets from itself and later tokens of this run, summed over heads; what rules that spare tokens go by
 * (`tokenImportance`). Plain and slow: every probability is computed anew.
 * @param totals [tokens, heads] f32 vec2: work memory
 * @param received [tokens] f32, written
 */
export function attentionReceived(
  gpu: Gpu,
  call: AttentionCall,
  totals: GpuBuffer,
  received: GpuBuffer,
): void {
  const { shape, queries, keys, sinks, tokens, rows, sight } = call;
  const { heads } = shape;
  const dims = { ...shared(call), tokens };
  const kind = sight?.kind ?? "none";
  const limits = sight ? [sight.table] : [];
  const params = { ...attentionParams, tokens: "u32" } as const;
  const score = `fn score(row: u32, head: u32, key_at: u32) -> f32 {
  var sum = 0.0;
  let query = (row * p.heads + head) * p.keyDim;
  for (var i = 0u; i < p.keyDim; i++) { sum += queries[query + i] * keys[key_at * p.keyDim + i]; }
  return sum * p.scale;
}
${sightCode(kind)}`;
  const softmax = gpu.kernel(`attention-totals ${kind} ${sinks ? "sinks" : ""}`, () => ({
    name: "attention-totals",
    params,
    bindings: [
      reads("queries", "array<f32>"),
      reads("keys", "array<f32>"),
      reads("rows", "array<vec4u>"),
      ...sightBindings(kind),
      ...(sinks ? [reads("sinks", "array<f32>")] : []),
      writes("totals", "array<vec2f>"),
    ],
    code: `${score}
${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i >= p.tokens * p.heads) { return; }
  let row = i / p.heads;
  let head = i % p.heads;
  let place = rows[row];
  let sight = sight_of(place.z, head);
  var most = ${sinks ? "sinks[head]" : "-3.4028234e38"};
  var sum = ${sinks ? "1.0" : "0.0"};
  for (var key = 0u; key <= place.x; key++) {
    if (!sees(sight, place.x, key)) { continue; }
    let value = score(row, head, key_row(sight, place.y, key, head / p.group));
    let next = max(most, value);
    sum = sum * exp(most - next) + exp(value - next);
    most = next;
  }
  totals[i] = vec2f(most, sum);
}`,
  }));
  gpu.commands.dispatch(
    softmax,
    [queries, keys, rows, ...limits, ...(sinks ? [sinks] : []), totals],
    dims,
    ...spreadThreads(tokens * heads, threads),
  );
  const sum = gpu.kernel(`attention-received ${kind}`, () => ({
    name: "attention-received",
    params,
    bindings: [
      reads("queries", "array<f32>"),
      reads("keys", "array<f32>"),
      reads("rows", "array<vec4u>"),
      ...sightBindings(kind),
      reads("totals", "array<vec2f>"),
      writes("received", "array<f32>"),
    ],
    code: `${score}
${mainOf(threads)} {
  let own = ${groupIndex} * ${threads}u + t;
  if (own >= p.tokens) { return; }
  let place = rows[own];
  var sum = 0.0;
  for (var row = own; row < own + place.w - place.x; row++) {
    for (var head = 0u; head < p.heads; head++) {
      let sight = sight_of(place.z, head);
      if (!sees(sight, rows[row].x, place.x)) { continue; }
      let total = totals[row * p.heads + head];
      sum += exp(score(row, head, key_row(sight, place.y, place.x, head / p.group)) - total.x) / total.y;
    }
  }
  received[own] = sum;
}`,
  }));
  gpu.commands.dispatch(
    sum,
    [queries, keys, rows, ...limits, totals, received],
    dims,
    ...spread(Math.ceil(tokens / threads)),
  );
}
