import { rowProducts } from "./row-products.js";

/** What the query heads of one KV head read, of one text. */
export interface HeadInputs {
  /** [S], positions of the queries, of 0 to N - 1. */
  readonly rows: Int32Array;
  /** [S, G, keyDim], queries of the G heads that read the KV head, turned by their positions. */
  readonly queries: Float32Array;
  /** [N, keyDim], turned by their positions. */
  readonly keys: Float32Array;
  /** [N, valueDim] */
  readonly values: Float32Array;
  readonly queryHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  /** Factor on q·k before softmax. */
  readonly scale: number;
  /** [G], logits that take part in the softmax and have no value (GPT-OSS). */
  readonly sinkLogits?: Float32Array;
}

/** First tokens that are seen besides a window, and windows in tokens, ascending. */
export interface NestedSpans {
  readonly sinks: number;
  readonly windows: readonly number[];
}

export interface SpanErrors {
  /** [S, W], squared L2 norm of what the KV head's part of the layer's output changes by, per row and window. */
  readonly errors: Float64Array;
  /** [S, G, valueDim], outputs of the heads that see everything. */
  readonly outputs: Float64Array;
}

/**
 * What every window changes, for all windows in one pass over the keys. With p_j = exp(scale q·k_j - m), the sums Σ p_j v_j and
 * Σ p_j grow key by key from the query's own backwards; with those of the sinks added, their quotient is at every border of a
 * window just what attention with that window puts out: o(window) = (Σ_sinks p v + Σ_window p v) / (Σ_sinks p + Σ_window p). The
 * error is ‖W_O (o(window) - o)‖², jointly over the heads that share the keys, as a rule is theirs together.
 * @param gram [G * valueDim, G * valueDim], W_Oᵀ W_O of these heads' columns of the output projection
 */
export function spanErrors(inputs: HeadInputs, spans: NestedSpans, gram: Float64Array): SpanErrors {
  const { rows, queryHeads, keyDim, valueDim } = inputs;
  const width = queryHeads * valueDim;
  const { windows } = spans;
  const errors = new Float64Array(rows.length * windows.length);
  const outputs = new Float64Array(rows.length * width);
  const keys = inputs.keys.length / keyDim;
  const scores = new Float64Array(rowsAtOnce * queryHeads * keys);
  const weights = new Float64Array(keys);
  /** [W, G, valueDim], what the outputs of windows differ by, and its products with the rows of the Gram matrix. */
  const differences = new Float64Array(windows.length * width);
  const products = new Float64Array(windows.length * width);
  for (let first = 0; first < rows.length; first += rowsAtOnce) {
    const some = rows.subarray(first, first + rowsAtOnce);
    const seen = Math.max(...some) + 1;
    const { queries } = inputs;
    rowProducts(
      queries.subarray(first * queryHeads * keyDim, (first + some.length) * queryHeads * keyDim),
      inputs.keys.subarray(0, seen * keyDim),
      keyDim,
      scores,
    );
    some.forEach((position, i) => {
      const row = first + i;
      // The windows that leave something out come first.
      let limited = windows.findIndex((window) => position - window + 1 <= spans.sinks);
      if (limited < 0) limited = windows.length;
      for (let head = 0; head < queryHeads; head++) {
        const from = (i * queryHeads + head) * seen;
        const sinkLogit = inputs.sinkLogits?.[head];
        const own = { scale: inputs.scale, ...(sinkLogit !== undefined && { sinkLogit }) };
        const sink = softmaxWeights(scores.subarray(from, from + position + 1), weights, own);
        const at = head * valueDim;
        const full = outputs.subarray(row * width + at, row * width + at + valueDim);
        sweep(inputs, spans, { position, limited, weights, sink, into: differences, at, width, full });
      }
      const own = outputs.subarray(row * width, (row + 1) * width);
      const changed = differences.subarray(0, limited * width);
      for (let k = 0; k < changed.length; k++)
        changed[k] = (changed[k] as number) - (own[k % width] as number);
      rowProducts(changed, gram, width, products);
      for (let w = 0; w < limited; w++) {
        let square = 0;
        for (let k = w * width; k < (w + 1) * width; k++)
          square += (changed[k] as number) * (products[k] as number);
        errors[row * windows.length + w] = Math.max(0, square);
      }
    });
  }
  return { errors, outputs };
}

/** Rows whose scores are worked out together. */
const rowsAtOnce = 8;

/**
 * exp(s_j - max s) of the keys up to a query.
 * @param products [keys], q·k
 * @returns the same of a learned sink, 0 without
 */
function softmaxWeights(
  products: Float64Array,
  weights: Float64Array,
  { scale, sinkLogit }: { readonly scale: number; readonly sinkLogit?: number },
): number {
  let most = sinkLogit ?? Number.NEGATIVE_INFINITY;
  for (let j = 0; j < products.length; j++) most = Math.max(most, scale * (products[j] as number));
  for (let j = 0; j < products.length; j++) weights[j] = Math.exp(scale * (products[j] as number) - most);
  return sinkLogit === undefined ? 0 : Math.exp(sinkLogit - most);
}

interface Sweep {
  readonly position: number;
  /** Windows that leave something out. */
  readonly limited: number;
  readonly weights: Float64Array;
  /** Weight of a learned sink. */
  readonly sink: number;
  /** Where outputs by window go: [W, width], from column `at`. */
  readonly into: Float64Array;
  readonly width: number;
  readonly at: number;
  /** Where the output with all keys goes. */
  readonly full: Float64Array;
}

function sweep({ values, valueDim }: HeadInputs, { sinks, windows }: NestedSpans, to: Sweep): void {
  const { position, limited, weights, into, width, full } = to;
  const sum = new Float64Array(valueDim);
  let total = to.sink;
  const add = (from: number, end: number) => {
    total += addValues(sum, values, weights, from, end);
  };
  // Sinks lie before every window that leaves something out, and before what lies between.
  const first = limited > 0 ? sinks : 0;
  add(0, first);
  let end = position + 1;
  for (let w = 0; w < limited; w++) {
    const from = position - (windows[w] as number) + 1;
    add(from, end);
    end = from;
    const at = w * width + to.at;
    for (let i = 0; i < valueDim; i++) into[at + i] = (sum[i] as number) / total;
  }
  add(first, end);
  for (let i = 0; i < valueDim; i++) full[i] = (sum[i] as number) / total;
}

/** Adds Σ p_j v_j of keys `from` to `end`, without `end`, four at a time. @returns Σ p_j */
function addValues(
  sum: Float64Array,
  values: Float32Array,
  weights: Float64Array,
  from: number,
  end: number,
): number {
  const size = sum.length;
  let total = 0;
  let j = from;
  for (; j + 4 <= end; j += 4) {
    const [a, b, c, d] = [weights[j], weights[j + 1], weights[j + 2], weights[j + 3]] as [
      number,
      number,
      number,
      number,
    ];
    total += a + b + c + d;
    const at = j * size;
    for (let i = 0; i < size; i++)
      sum[i] =
        (sum[i] as number) +
        a * (values[at + i] as number) +
        b * (values[at + size + i] as number) +
        c * (values[at + 2 * size + i] as number) +
        d * (values[at + 3 * size + i] as number);
  }
  for (; j < end; j++) {
    const weight = weights[j] as number;
    total += weight;
    for (let i = 0; i < size; i++) sum[i] = (sum[i] as number) + weight * (values[j * size + i] as number);
  }
  return total;
}
