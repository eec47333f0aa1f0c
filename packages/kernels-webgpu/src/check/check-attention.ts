import {
  type AttentionCall,
  type AttentionShape,
  attendPrefill,
  attendSplit,
  attentionReceived,
  attentionTables,
  type SequenceSpan,
  splitBytes,
} from "../attention.js";
import { type KernelCheck, randomValues, withBuffers, worstDifference } from "./kernel-check.js";

export interface AttentionCheck {
  readonly shape: AttentionShape;
  readonly sinks: boolean;
  /** Tokens of every sequence in this run, and those that came before. */
  readonly sequences: readonly { readonly tokens: number; readonly past: number }[];
  readonly way: "prefill" | "split" | "received";
}

const names = {
  prefill: "attention-prefill",
  split: "attention-split",
  received: "attention-received",
} as const;

/** Attention of sequences of unequal lengths, whose keys lie apart, against the formula. */
export function checkAttention(check: AttentionCheck): KernelCheck {
  const { shape, sinks, sequences, way } = check;
  const { heads, kvHeads, keyDim, valueDim } = shape;
  return {
    kernel: names[way],
    key: `attention ${JSON.stringify(check)}`,
    tolerance: 2e-5,
    run: (gpu) =>
      withBuffers(gpu, async ({ upload, empty }) => {
        const spans: SequenceSpan[] = [];
        let row = 0;
        let keyRow = 0;
        for (const { tokens, past } of sequences) {
          spans.push({ row, tokens, past, keyRow });
          row += tokens;
          keyRow += past + tokens + 3;
        }
        const queries = randomValues(row * heads * keyDim, 1).map((value) => 2 * value);
        const keys = randomValues(keyRow * kvHeads * keyDim, 2);
        const values = randomValues(keyRow * kvHeads * valueDim, 3);
        const sinkValues = sinks ? randomValues(heads, 4) : undefined;
        const tables = attentionTables(spans);
        const y = empty(row * heads * valueDim);
        const call: AttentionCall = {
          shape,
          queries: upload(queries),
          keys: upload(keys),
          values: upload(values),
          sinks: sinkValues && upload(sinkValues),
          tokens: row,
          tiles: upload(tables.tiles),
          tileCount: tables.tiles.length / 4,
          rows: upload(tables.rows),
          longest: tables.longest,
          y,
        };
        const slow = slowAttention(check, spans, queries, keys, values, sinkValues);
        if (way === "received") {
          const ends = Uint32Array.from(
            spans.flatMap((s) => new Array<number>(s.tokens).fill(s.row + s.tokens)),
          );
          const received = empty(row);
          attentionReceived(gpu, call, upload(ends), empty(2 * row * heads), received);
          return worstDifference(await gpu.readFloats(received, row), slow.received);
        }
        if (way === "prefill") attendPrefill(gpu, call);
        else attendSplit(gpu, call, empty(splitBytes(shape, row, tables.longest) / 4));
        return worstDifference(await gpu.readFloats(y, row * heads * valueDim), slow.mixed);
      }),
  };
}

/** Softmax of q·k over the keys that each position sees, times the values, in float64. */
function slowAttention(
  { shape }: AttentionCheck,
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
  for (const { row, tokens, past, keyRow } of spans) {
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
        for (let key = first; key <= position; key++) {
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
