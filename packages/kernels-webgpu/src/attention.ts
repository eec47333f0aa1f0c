import {
  type AttentionOptions,
  attentionKey,
  attentionParams,
  firstSeenCode,
  prefillSource,
  queryTile,
} from "./attention-prefill-code.js";
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
  /** [tokens] vec2u: position, and the row of position 0 of the keys. */
  readonly rows: Uint32Array;
  /** Most keys that a query sees, window and chunk aside. */
  readonly longest: number;
}

export function attentionTables(spans: readonly SequenceSpan[]): AttentionTables {
  const tiles: number[] = [];
  const rows: number[] = [];
  let longest = 0;
  for (const { row, tokens, past, keyRow } of spans) {
    for (let i = 0; i < tokens; i += queryTile) {
      tiles.push(row + i, Math.min(queryTile, tokens - i), past + i, keyRow);
    }
    for (let i = 0; i < tokens; i++) rows.push(past + i, keyRow);
    longest = Math.max(longest, past + tokens);
  }
  return { tiles: Uint32Array.from(tiles), rows: Uint32Array.from(rows), longest };
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

export interface AttentionCall {
  readonly shape: AttentionShape;
  /** [tokens, heads, keyDim] */
  readonly queries: GpuBuffer;
  /** [key rows, kvHeads, keyDim] */
  readonly keys: GpuBuffer;
  /** [key rows, kvHeads, valueDim] */
  readonly values: GpuBuffer;
  /** [heads], logits that take part in the softmax and have no value. */
  readonly sinks?: GpuBuffer | undefined;
  readonly tokens: number;
  /** `AttentionTables.tiles` and how many there are; for `attendPrefill`. */
  readonly tiles: GpuBuffer;
  readonly tileCount: number;
  /** `AttentionTables.rows`; for `attendSplit` and `attentionReceived`. */
  readonly rows: GpuBuffer;
  readonly longest: number;
  /** [tokens, heads, valueDim] */
  readonly y: GpuBuffer;
}

/** Dense causal attention of many queries (tiles and online softmax as in FlashAttention, arXiv 2205.14135). */
export function attendPrefill(gpu: Gpu, call: AttentionCall): void {
  const { shape, queries, keys, values, sinks, tiles, tileCount, y } = call;
  const room = Math.ceil(shape.valueDim / 64);
  const options: AttentionOptions = { ...vectors(shape), room, sinks: sinks !== undefined };
  const kernel = gpu.kernel(`attention-prefill ${attentionKey(options)}`, () => prefillSource(options));
  const buffers = [queries, keys, values, ...(sinks ? [sinks] : []), tiles, y];
  gpu.commands.dispatch(kernel, buffers, shared(shape), tileCount, shape.heads);
}

/** Bytes of the partial results of `attendSplit`. */
export function splitBytes({ heads, valueDim }: AttentionShape, tokens: number, longest: number): number {
  return 4 * tokens * heads * Math.ceil(longest / splitKeys) * (valueDim + 2);
}

/**
 * Attention of few queries over many keys: the keys are split between workgroups, whose partial results are joined by a second
 * kernel (Flash-Decoding).
 * @param partial of `splitBytes`
 */
export function attendSplit(gpu: Gpu, call: AttentionCall, partial: GpuBuffer): void {
  const { shape, queries, keys, values, sinks, tokens, rows, longest, y } = call;
  const room = shape.keyDim <= 256 ? 64 : Math.ceil(shape.keyDim / 4);
  const options: AttentionOptions = { ...vectors(shape), room, sinks: sinks !== undefined };
  const splits = Math.ceil(longest / splitKeys);
  const params = { ...shared(shape), splits };
  const kernel = gpu.kernel(`attention-split ${attentionKey(options)}`, () => splitSource(options));
  gpu.commands.dispatch(kernel, [queries, keys, values, rows, partial], params, tokens * shape.heads, splits);
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

const shared = ({ heads, kvHeads, keyDim, valueDim, scale, window, chunk }: AttentionShape) => ({
  heads,
  group: heads / kvHeads,
  keyDim,
  valueDim,
  scale,
  window,
  chunk,
});

const threads = 64;

/**
 * Attention that every token gets from itself and later tokens of this run, summed over heads; what rules that spare tokens go by
 * (`tokenImportance`). Plain and slow: every probability is computed anew.
 * @param ends [tokens] u32: the row after the last of the token's sequence
 * @param totals [tokens, heads] f32 vec2: work memory
 * @param received [tokens] f32, written
 */
export function attentionReceived(
  gpu: Gpu,
  call: AttentionCall,
  ends: GpuBuffer,
  totals: GpuBuffer,
  received: GpuBuffer,
): void {
  const { shape, queries, keys, sinks, tokens, rows } = call;
  const { heads } = shape;
  const dims = { ...shared(shape), tokens };
  const params = { ...attentionParams, tokens: "u32" } as const;
  const score = `fn score(row: u32, head: u32, key_row: u32) -> f32 {
  var sum = 0.0;
  let query = (row * p.heads + head) * p.keyDim;
  let key = (key_row * (p.heads / p.group) + head / p.group) * p.keyDim;
  for (var i = 0u; i < p.keyDim; i++) { sum += queries[query + i] * keys[key + i]; }
  return sum * p.scale;
}
${firstSeenCode}`;
  const softmax = gpu.kernel(`attention-totals ${sinks ? "sinks" : ""}`, () => ({
    name: "attention-totals",
    params,
    bindings: [
      reads("queries", "array<f32>"),
      reads("keys", "array<f32>"),
      reads("rows", "array<vec2u>"),
      ...(sinks ? [reads("sinks", "array<f32>")] : []),
      writes("totals", "array<vec2f>"),
    ],
    code: `${score}
${mainOf(threads)} {
  let i = ${groupIndex} * ${threads}u + t;
  if (i >= p.tokens * p.heads) { return; }
  let row = i / p.heads;
  let head = i % p.heads;
  let position = rows[row].x;
  var most = ${sinks ? "sinks[head]" : "-3.4028234e38"};
  var sum = ${sinks ? "1.0" : "0.0"};
  for (var key = first_seen(position); key <= position; key++) {
    let value = score(row, head, rows[row].y + key);
    let next = max(most, value);
    sum = sum * exp(most - next) + exp(value - next);
    most = next;
  }
  totals[i] = vec2f(most, sum);
}`,
  }));
  gpu.commands.dispatch(
    softmax,
    [queries, keys, rows, ...(sinks ? [sinks] : []), totals],
    dims,
    ...spreadThreads(tokens * heads, threads),
  );
  const sum = gpu.kernel("attention-received", () => ({
    name: "attention-received",
    params,
    bindings: [
      reads("queries", "array<f32>"),
      reads("keys", "array<f32>"),
      reads("rows", "array<vec2u>"),
      reads("ends", "array<u32>"),
      reads("totals", "array<vec2f>"),
      writes("received", "array<f32>"),
    ],
    code: `${score}
${mainOf(threads)} {
  let own = ${groupIndex} * ${threads}u + t;
  if (own >= p.tokens) { return; }
  let place = rows[own];
  var sum = 0.0;
  for (var row = own; row < ends[own]; row++) {
    if (first_seen(rows[row].x) > place.x) { continue; }
    for (var head = 0u; head < p.heads; head++) {
      let total = totals[row * p.heads + head];
      sum += exp(score(row, head, place.y + place.x) - total.x) / total.y;
    }
  }
  received[own] = sum;
}`,
  }));
  gpu.commands.dispatch(
    sum,
    [queries, keys, rows, ends, totals, received],
    dims,
    ...spread(Math.ceil(tokens / threads)),
  );
}
