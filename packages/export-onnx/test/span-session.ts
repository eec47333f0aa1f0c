import type { HeadSpan } from "@coppice/core";
import type { InferenceSession, Tensor } from "onnxruntime-node";
import * as node from "onnxruntime-node";
import { type ExportedGraph, openGraph, type Runtime } from "./exported-session.js";

/** A cache of the graph, with keys or values of every sequence by position, [heads, size] each. */
interface Rows {
  readonly heads: number;
  readonly size: number;
  readonly bySequence: Float32Array[][];
}

/**
 * Runs a graph whose heads have spans, over a batch of sequences: keeps keys and values of all tokens, gives the graph those that a span
 * needs, in the order of their positions, and hides what a token does not see by looking at every pair.
 */
export class SpanSession {
  readonly #runtime: Runtime;
  readonly #session: InferenceSession;
  readonly #spans: readonly HeadSpan[];
  readonly #rows = new Map<string, Rows>();
  /** Tokens of each sequence so far. */
  #seen: number[] = [];

  private constructor(runtime: Runtime, session: InferenceSession, spans: readonly HeadSpan[]) {
    this.#runtime = runtime;
    this.#session = session;
    this.#spans = spans;
    this.reset();
  }

  static async open(graph: ExportedGraph, spans: readonly HeadSpan[], runtime: Runtime = node) {
    return new SpanSession(runtime, await openGraph(graph, runtime), spans);
  }

  /** Forgets all tokens. */
  reset(sequences = 1): void {
    this.#seen = new Array<number>(sequences).fill(0);
    for (const input of this.#session.inputMetadata) {
      if (!input.name.startsWith("past_key_values.") || !input.isTensor) continue;
      const [, heads, , size] = input.shape as [string, number, string, number];
      this.#rows.set(input.name, { heads, size, bySequence: this.#seen.map(() => []) });
    }
  }

  /**
   * Runs the next tokens of each sequence: as many for all, unless they are the first.
   * @returns logits of each sequence, of all its tokens
   */
  async run(...tokens: readonly Int32Array[]): Promise<Float32Array[]> {
    const { Tensor } = this.#runtime;
    const [batch, steps] = [tokens.length, Math.max(...tokens.map(({ length }) => length))];
    const past = this.#seen;
    const seen = past.map((count, b) => count + (tokens[b] as Int32Array).length);
    const total = Math.max(...seen);
    const int64 = (values: readonly number[], dims: readonly number[]) =>
      new Tensor("int64", BigInt64Array.from(values, BigInt), dims);
    const padded = tokens.flatMap((ids) => Array.from({ length: steps }, (_, i) => ids[i] ?? 0));
    const mask = seen.flatMap((count) => Array.from({ length: total }, (_, i) => Number(i < count)));
    const feeds: Record<string, Tensor> = {
      input_ids: int64(padded, [batch, steps]),
      attention_mask: int64(mask, [batch, total]),
      num_logits_to_keep: int64([0], []),
    };
    for (const [k, span] of this.#spans.entries()) {
      const places = past.map((count, b) => [
        ...heldOf(span, count),
        ...Array.from(tokens[b] as Int32Array, (_, i) => count + i),
      ]);
      const most = Math.max(...places.map(({ length }) => length));
      const bias = new Float32Array(batch * steps * most);
      for (let b = 0, at = 0; b < batch; b++) {
        for (let i = 0; i < steps; i++) {
          for (let place = 0; place < most; place++, at++) {
            const position = places[b]?.[place] ?? 0;
            const end = (past[b] as number) + i - span.window;
            bias[at] = position < span.sinks || position > end ? 0 : -1e9;
          }
        }
      }
      feeds[`attention_bias.${k}`] = new Tensor("float32", bias, [batch, 1, steps, most]);
    }
    for (const [name, { heads, size, bySequence }] of this.#rows) {
      const held = past.map((count) => heldOf(this.#spanOf(name), count));
      const places = Math.max(...held.map(({ length }) => length));
      const data = new Float32Array(batch * heads * places * size);
      for (const [b, positions] of held.entries()) {
        for (const [place, position] of positions.entries()) {
          const row = bySequence[b]?.[position] as Float32Array;
          for (let head = 0; head < heads; head++) {
            const to = ((b * heads + head) * places + place) * size;
            data.set(row.subarray(head * size, (head + 1) * size), to);
          }
        }
      }
      feeds[name] = new Tensor("float32", data, [batch, heads, places, size]);
    }
    const outputs = await this.#session.run(feeds);
    for (const [name, { heads, size, bySequence }] of this.#rows) {
      const { data, dims } = outputs[name.replace("past_key_values", "present")] as Tensor;
      const places = dims[2] as number;
      for (const [b, ids] of tokens.entries()) {
        const held = heldOf(this.#spanOf(name), past[b] as number).length;
        for (let i = 0; i < ids.length; i++) {
          const row = new Float32Array(heads * size);
          for (let head = 0; head < heads; head++) {
            const from = ((b * heads + head) * places + held + i) * size;
            row.set((data as Float32Array).subarray(from, from + size), head * size);
          }
          bySequence[b]?.push(row);
        }
      }
    }
    this.#seen = seen;
    const logits = outputs["logits"]?.data as Float32Array;
    const width = logits.length / batch;
    return tokens.map(({ length }, b) => logits.subarray(b * width, b * width + (length * width) / steps));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#session.release();
  }

  /** Names such as `past_key_values.3.0.key`; `all` and whole layers have no span. */
  #spanOf(name: string): HeadSpan | undefined {
    return this.#spans[Number(/^past_key_values\.\d+\.(\d+)\./.exec(name)?.[1])];
  }
}

/** Positions that a head needs of so many earlier tokens, which are those that the next token sees. */
function heldOf(span: HeadSpan | undefined, tokens: number): number[] {
  const all = Array.from({ length: tokens }, (_, position) => position);
  return span ? all.filter((j) => j < span.sinks || j > tokens - span.window) : all;
}
