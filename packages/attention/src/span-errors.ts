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
  const { rows, queryHeads, valueDim } = inputs;
  const width = queryHeads * valueDim;
  const { windows } = spans;
  const errors = new Float64Array(rows.length * windows.length);
  const outputs = new Float64Array(rows.length * width);
  const weights = new Float64Array(inputs.keys.length / inputs.keyDim + 1);
  /** [W, G, valueDim], outputs by window. */
  const partial = new Float64Array(windows.length * width);
  const difference = new Float64Array(width);
  rows.forEach((position, row) => {
    // The windows that leave something out come first.
    let limited = windows.findIndex((window) => position - window + 1 <= spans.sinks);
    if (limited < 0) limited = windows.length;
    for (let head = 0; head < queryHeads; head++) {
      softmaxWeights(inputs, row, head, position, weights);
      const sink = inputs.sinkLogits ? (weights[position + 1] as number) : 0;
      const full = outputs.subarray(row * width + head * valueDim, row * width + (head + 1) * valueDim);
      sweep(inputs, spans, { position, limited, weights, sink, partial, at: head * valueDim, width, full });
    }
    const own = outputs.subarray(row * width, (row + 1) * width);
    for (let w = 0; w < limited; w++) {
      for (let i = 0; i < width; i++) difference[i] = (partial[w * width + i] as number) - (own[i] as number);
      errors[row * windows.length + w] = quadratic(gram, difference);
    }
  });
  return { errors, outputs };
}

/** exp(s_j - max s) of keys 0 to `position`; a learned sink's stands behind them. */
function softmaxWeights(
  { queries, keys, keyDim, queryHeads, scale, sinkLogits }: HeadInputs,
  row: number,
  head: number,
  position: number,
  weights: Float64Array,
): void {
  const query = queries.subarray((row * queryHeads + head) * keyDim, (row * queryHeads + head + 1) * keyDim);
  let most = sinkLogits ? (sinkLogits[head] as number) : Number.NEGATIVE_INFINITY;
  for (let j = 0; j <= position; j++) {
    const at = j * keyDim;
    let [a, b, c, d] = [0, 0, 0, 0];
    let i = 0;
    for (; i + 4 <= keyDim; i += 4) {
      a += (query[i] as number) * (keys[at + i] as number);
      b += (query[i + 1] as number) * (keys[at + i + 1] as number);
      c += (query[i + 2] as number) * (keys[at + i + 2] as number);
      d += (query[i + 3] as number) * (keys[at + i + 3] as number);
    }
    for (; i < keyDim; i++) a += (query[i] as number) * (keys[at + i] as number);
    const score = scale * (a + b + c + d);
    weights[j] = score;
    if (score > most) most = score;
  }
  for (let j = 0; j <= position; j++) weights[j] = Math.exp((weights[j] as number) - most);
  if (sinkLogits) weights[position + 1] = Math.exp((sinkLogits[head] as number) - most);
}

interface Sweep {
  readonly position: number;
  /** Windows that leave something out. */
  readonly limited: number;
  readonly weights: Float64Array;
  /** Weight of a learned sink. */
  readonly sink: number;
  /** Where outputs by window go: [W, width], from column `at`. */
  readonly partial: Float64Array;
  readonly width: number;
  readonly at: number;
  /** Where the output with all keys goes. */
  readonly full: Float64Array;
}

function sweep({ values, valueDim }: HeadInputs, { sinks, windows }: NestedSpans, to: Sweep): void {
  const { position, limited, weights, partial, width, full } = to;
  const sum = new Float64Array(valueDim);
  let total = to.sink;
  const add = (j: number) => {
    const weight = weights[j] as number;
    const from = j * valueDim;
    total += weight;
    for (let i = 0; i < valueDim; i++) sum[i] = (sum[i] as number) + weight * (values[from + i] as number);
  };
  // Sinks lie before every window that leaves something out, and before what lies between.
  const first = limited > 0 ? sinks : 0;
  for (let j = 0; j < first; j++) add(j);
  let j = position;
  for (let w = 0; w < limited; w++) {
    const end = position - (windows[w] as number);
    for (; j > end; j--) add(j);
    const at = w * width + to.at;
    for (let i = 0; i < valueDim; i++) partial[at + i] = (sum[i] as number) / total;
  }
  for (; j >= first; j--) add(j);
  for (let i = 0; i < valueDim; i++) full[i] = (sum[i] as number) / total;
}

/** xᵀ M x of a symmetric M. */
export function quadratic(matrix: Float64Array, x: Float64Array): number {
  const size = x.length;
  let sum = 0;
  for (let i = 0; i < size; i++) {
    let row = 0.5 * (matrix[i * size + i] as number) * (x[i] as number);
    for (let j = 0, at = i * size; j < i; j++) row += (matrix[at + j] as number) * (x[j] as number);
    sum += row * (x[i] as number);
  }
  return Math.max(0, 2 * sum);
}
