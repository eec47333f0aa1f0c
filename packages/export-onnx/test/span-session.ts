import type { HeadSpan } from "@coppice/core";
import type { InferenceSession, Tensor } from "onnxruntime-node";
import * as node from "onnxruntime-node";
import type { ExportedGraph, Runtime } from "./exported-session.js";
import { openGraph } from "./exported-session.js";

/** Rows of one cache of a sequence, by position. */
interface Rows {
  readonly heads: number;
  readonly size: number;
  /** [heads, size] each */
  readonly byPosition: Float32Array[];
}

/**
 * Runs a graph whose heads have spans, over one sequence: keeps keys and values of all tokens, gives the graph those that a span needs,
 * in the order of their positions, and hides what a token does not see by looking at every pair.
 */
export class SpanSession {
  readonly #runtime: Runtime;
  readonly #session: InferenceSession;
  readonly #spans: readonly HeadSpan[];
  readonly #rows = new Map<string, Rows>();
  #seen = 0;

  private constructor(runtime: Runtime, session: InferenceSession, spans: readonly HeadSpan[]) {
    this.#runtime = runtime;
    this.#session = session;
    this.#spans = spans;
    this.reset();
  }

  static async open(graph: ExportedGraph, spans: readonly HeadSpan[], runtime: Runtime = node) {
    return new SpanSession(runtime, await openGraph(graph, runtime), spans);
  }

  reset(): void {
    this.#seen = 0;
    for (const input of this.#session.inputMetadata) {
      if (!input.name.startsWith("past_key_values.") || !input.isTensor) continue;
      const [, heads, , size] = input.shape as [string, number, string, number];
      this.#rows.set(input.name, { heads, size, byPosition: [] });
    }
  }

  /** Logits of the last tokens, or of all for 0. */
  async run(tokens: Int32Array, keep = 0): Promise<Float32Array> {
    const { Tensor } = this.#runtime;
    const [past, total] = [this.#seen, this.#seen + tokens.length];
    const int64 = (values: readonly bigint[], dims: readonly number[]) =>
      new Tensor("int64", BigInt64Array.from(values), dims);
    const feeds: Record<string, Tensor> = {
      input_ids: int64(Array.from(tokens, BigInt), [1, tokens.length]),
      attention_mask: int64(new Array<bigint>(total).fill(1n), [1, total]),
      num_logits_to_keep: int64([BigInt(keep)], []),
    };
    for (const [k, span] of this.#spans.entries()) {
      const places = [...this.#held(span), ...Array.from(tokens, (_, i) => past + i)];
      const bias = Array.from(tokens, (_, i) =>
        places.map((j) => (j < span.sinks || j > past + i - span.window ? 0 : -1e9)),
      );
      feeds[`attention_bias.${k}`] = new Tensor("float32", Float32Array.from(bias.flat()), [
        1,
        1,
        tokens.length,
        places.length,
      ]);
    }
    for (const [name, { heads, size, byPosition }] of this.#rows) {
      const held = this.#held(this.#spanOf(name)).map((position) => byPosition[position] as Float32Array);
      const data = new Float32Array(heads * held.length * size);
      for (let head = 0; head < heads; head++) {
        for (const [place, row] of held.entries()) {
          data.set(row.subarray(head * size, (head + 1) * size), (head * held.length + place) * size);
        }
      }
      feeds[name] = new Tensor("float32", data, [1, heads, held.length, size]);
    }
    const outputs = await this.#session.run(feeds);
    for (const [name, { heads, size, byPosition }] of this.#rows) {
      const { data, dims } = outputs[name.replace("past_key_values", "present")] as Tensor;
      const places = dims[2] as number;
      for (let i = 0; i < tokens.length; i++) {
        const row = new Float32Array(heads * size);
        for (let head = 0; head < heads; head++) {
          const from = (head * places + places - tokens.length + i) * size;
          row.set((data as Float32Array).subarray(from, from + size), head * size);
        }
        byPosition.push(row);
      }
    }
    this.#seen = total;
    return outputs["logits"]?.data as Float32Array;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#session.release();
  }

  /** Names such as `past_key_values.3.0.key`; `all` and whole layers have no span. */
  #spanOf(name: string): HeadSpan | undefined {
    return this.#spans[Number(/^past_key_values\.\d+\.(\d+)\./.exec(name)?.[1])];
  }

  /** Earlier positions that a head needs, which is those that the next token sees. */
  #held(span: HeadSpan | undefined): number[] {
    const all = Array.from({ length: this.#seen }, (_, position) => position);
    return span ? all.filter((j) => j < span.sinks || j > this.#seen - span.window) : all;
  }
}
