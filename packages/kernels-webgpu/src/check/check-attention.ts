import { type BlockMask, blockMask, seesKey } from "@coppice/core";
import {
  type AttentionCall,
  type AttentionShape,
  type AttentionSight,
  attendPrefill,
  attendSplit,
  attentionReceived,
  attentionTables,
  type SequenceSpan,
  splitBytes,
} from "../attention.js";
import { keepRows, maskTable } from "../attention-cache.js";
import type { Gpu } from "../gpu.js";
import {
  type CheckBuffers,
  type Implementation,
  type KernelCheck,
  randomValues,
  withBuffers,
  worstDifference,
} from "./kernel-check.js";

export interface AttentionCheck {
  readonly shape: AttentionShape;
  readonly sinks: boolean;
  /** Tokens of every sequence in this run, and those that came before. */
  readonly sequences: readonly { readonly tokens: number; readonly past: number }[];
  readonly way: "prefill" | "split" | "received";
  /** What is seen beside window and chunk; `rings` are spans whose keys lie in rings, put there by `keepRows`. */
  readonly sight?: "spans" | "rings" | "blocks";
}

const names = {
  prefill: "attention-prefill",
  split: "attention-split",
  received: "attention-received",
} as const;

/**
 * Attention of sequences of unequal lengths, whose keys lie apart, against the formula.
 * @param by another implementation than our kernel, which is given keys without gaps
 */
export function checkAttention(check: AttentionCheck, by?: Implementation<AttentionCall>): KernelCheck {
  const { shape, sinks, sequences, way, sight } = check;
  const { heads, kvHeads, keyDim, valueDim } = shape;
  const checked = by ?? ourKernel(check);
  return {
    kernel: checked.name,
    key: `${checked.name} ${JSON.stringify(check)}`,
    tolerance: 2e-5,
    run: (gpu) =>
      withBuffers(gpu, async (own) => {
        const { upload, empty } = own;
        const spans: SequenceSpan[] = [];
        let row = 0;
        let keyRow = 0;
        for (const { tokens, past } of sequences) {
          spans.push({ row, tokens, past, keyRow });
          row += tokens;
          keyRow += past + tokens + (by ? 0 : 3);
        }
        const queries = randomValues(row * heads * keyDim, 1).map((value) => 2 * value);
        const keys = randomValues(keyRow * kvHeads * keyDim, 2);
        const values = randomValues(keyRow * kvHeads * valueDim, 3);
        const sinkValues = sinks ? randomValues(heads, 4) : undefined;
        const tables = attentionTables(spans);
        const y = empty(row * heads * valueDim);
        const rows = upload(tables.rows);
        const rings = sight === "rings" ? inRings(gpu, own, shape, spans, keys, values) : undefined;
        const call: AttentionCall = {
          shape,
          queries: upload(queries),
          ...(rings ?? { keys: upload(keys), values: upload(values), sight: inPlace(own, check, spans) }),
          sinks: sinkValues && upload(sinkValues),
          tokens: row,
          tiles: upload(tables.tiles),
          tileCount: tables.tiles.length / 4,
          queryTile: tables.queryTile,
          rows,
          longest: tables.longest,
          y,
        };
        const slow = slowAttention(check, spans, queries, keys, values, sinkValues);
        if (way === "received") {
          const received = empty(row);
          attentionReceived(gpu, call, empty(2 * row * heads), received);
          return worstDifference(await gpu.readFloats(received, row), slow.received);
        }
        await checked.run(gpu, call, own);
        return worstDifference(await gpu.readFloats(y, row * heads * valueDim), slow.mixed);
      }),
  };
}

function ourKernel({ way, sight }: AttentionCheck): Implementation<AttentionCall> {
  return {
    name: sight ? `${names[way]} of ${sight}` : names[way],
    run: (gpu, call, { empty }) => {
      if (way === "prefill") attendPrefill(gpu, call);
      else attendSplit(gpu, call, empty(splitBytes(call.shape, call.tokens, call.longest) / 4));
    },
  };
}

/** Softmax of q·k over the keys that each position sees, times the values, in float64. */
function slowAttention(
  { shape, sight }: AttentionCheck,
  spans: readonly SequenceSpan[],
  queries: Float32Array,
  keys: Float32Array,
  values: Float32Array,
  sinks: Float32Array | undefined,
): { mixed: Float64Array; received: Float64Array } {
  const { heads, kvHeads, keyDim, valueDim, scale, window, chunk } = shape;
  const total = spans.reduce((sum, { tokens }) => sum + tokens, 0);
  const mixed = new Float64Array(total * heads * valueDim);
  const received = new Float64Array(total);
  for (const [sequence, span] of spans.entries()) {
    const { row, tokens, past, keyRow } = span;
    const mask = sight === "blocks" ? sampleMask(span) : undefined;
    for (let i = 0; i < tokens; i++) {
      const position = past + i;
      const first = Math.max(
        0,
        window ? position - window + 1 : 0,
        chunk ? position - (position % chunk) : 0,
      );
      for (let head = 0; head < heads; head++) {
        const shared = Math.floor((head * kvHeads) / heads);
        const weights: number[] = [];
        const limit = sight === "spans" || sight === "rings" ? sampleSpan(sequence, shared) : undefined;
        for (let key = first; key <= position; key++) {
          const seen = mask
            ? seesKey(mask, head, position, key)
            : !limit || limit.window === 0 || key < limit.sinks || key > position - limit.window;
          if (!seen) {
            weights.push(0);
            continue;
          }
          let sum = 0;
          for (let d = 0; d < keyDim; d++) {
            const q = queries[((row + i) * heads + head) * keyDim + d] as number;
            sum += q * (keys[((keyRow + key) * kvHeads + shared) * keyDim + d] as number);
          }
          weights.push(Math.exp(sum * scale));
        }
        const whole = weights.reduce(
          (sum, weight) => sum + weight,
          sinks ? Math.exp(sinks[head] as number) : 0,
        );
        weights.forEach((weight, k) => {
          const key = first + k;
          if (key >= past)
            received[row + key - past] = (received[row + key - past] as number) + weight / whole;
          for (let d = 0; d < valueDim; d++) {
            const at = ((row + i) * heads + head) * valueDim + d;
            const value = values[((keyRow + key) * kvHeads + shared) * valueDim + d] as number;
            mixed[at] = (mixed[at] as number) + (weight / whole) * value;
          }
        });
      }
    }
  }
  return { mixed, received };
}

/** Dense, shorter than the sinks and the rest of most sequences, and longer. */
function sampleSpan(sequence: number, kvHead: number): { sinks: number; window: number } {
  return [
    { sinks: 3, window: 4 },
    { sinks: 0, window: 0 },
    { sinks: 0, window: 6 },
    { sinks: 5, window: 40 },
  ][(sequence + kvHead) % 4] as { sinks: number; window: number };
}

/** Blocks of 3 in two layouts; a sequence that goes on sees all. */
function sampleMask({ tokens, past }: SequenceSpan): BlockMask | undefined {
  if (past > 0) return undefined;
  return blockMask(
    3,
    Math.ceil(tokens / 3),
    2,
    (layout, row, column) =>
      row === column || (column < row - 25 ? layout === 1 : (row + 2 * column + layout) % 5 === 0),
  );
}

/** For keys that lie position by position. */
function inPlace(
  { upload }: CheckBuffers,
  { sight: kind, shape: { kvHeads: stride } }: AttentionCheck,
  spans: readonly SequenceSpan[],
): AttentionSight | undefined {
  if (kind === "blocks") return { kind, table: upload(maskTable(spans.map(sampleMask))) };
  if (kind !== "spans") return undefined;
  const table = spans.flatMap(({ keyRow }, s) =>
    Array.from({ length: stride }, (_, h) => {
      const { sinks, window } = sampleSpan(s, h);
      return [sinks, window, keyRow * stride + h, 0];
    }),
  );
  return { kind, table: upload(Uint32Array.from(table.flat())), first: 0, stride };
}

/** The same keys and values in rings just long enough for this run; first what came before it, then what it adds. */
function inRings(
  gpu: Gpu,
  { upload, empty }: CheckBuffers,
  { kvHeads, keyDim, valueDim }: AttentionShape,
  spans: readonly SequenceSpan[],
  keys: Float32Array,
  values: Float32Array,
): Pick<AttentionCall, "keys" | "values" | "sight"> {
  let end = 0;
  const table = spans.flatMap(({ tokens, past }, s) =>
    Array.from({ length: kvHeads }, (_, h) => {
      const { sinks, window } = sampleSpan(s, h);
      const ring = window > 0 && sinks + window + tokens - 1 < past + tokens ? window + tokens - 1 : 0;
      const base = end;
      end += ring ? sinks + ring : past + tokens;
      return [sinks, window, base, ring];
    }),
  );
  const sight = {
    kind: "spans",
    table: upload(Uint32Array.from(table.flat())),
    first: 0,
    stride: 1,
  } as const;
  const kept = (all: Float32Array, size: number) => {
    const y = empty(end * size);
    for (const part of ["past", "own"]) {
      const rows: number[] = [];
      const x: number[] = [];
      spans.forEach(({ tokens, past, keyRow }, s) => {
        const [from, to] = part === "past" ? [0, past] : [past, past + tokens];
        for (let i = from; i < to; i++) rows.push(i, 0, s, to);
        x.push(...all.subarray((keyRow + from) * kvHeads * size, (keyRow + to) * kvHeads * size));
      });
      const tokens = rows.length / 4;
      const laid = { x: upload(Float32Array.from(x)), rows: upload(Uint32Array.from(rows)) };
      keepRows(gpu, { ...laid, tokens, kvHeads, size, sight, y });
    }
    return y;
  };
  return { keys: kept(keys, keyDim), values: kept(values, valueDim), sight };
}
