import type { InferenceSession, Tensor } from "onnxruntime-node";
import * as node from "onnxruntime-node";

/** onnxruntime-node, or what looks like it. */
export type Runtime = Pick<typeof node, "InferenceSession" | "Tensor">;

/** A graph and the files beside it, in memory or as the path of the graph. */
export type ExportedGraph = string | { readonly files: ReadonlyMap<string, Uint8Array> };

/** Runs an exported graph over one sequence, token by token or in pieces. */
export class ExportedSession {
  readonly session: InferenceSession;
  readonly #runtime: Runtime;
  #past: Record<string, Tensor>;
  #seen = 0;

  private constructor(runtime: Runtime, session: InferenceSession) {
    this.#runtime = runtime;
    this.session = session;
    this.#past = emptyPast(runtime, session);
  }

  static async open(graph: ExportedGraph, runtime: Runtime = node): Promise<ExportedSession> {
    return new ExportedSession(runtime, await openGraph(graph, runtime));
  }

  /**
   * Runs the next tokens.
   * @param keep of how many of the last ones logits are wanted; 0: all
   */
  async run(tokens: Int32Array, keep = 0): Promise<Record<string, Tensor>> {
    const total = this.#seen + tokens.length;
    const int64 = (values: readonly bigint[], dims: readonly number[]) =>
      new this.#runtime.Tensor("int64", BigInt64Array.from(values), dims);
    const outputs = await this.session.run({
      ...this.#past,
      input_ids: int64(Array.from(tokens, BigInt), [1, tokens.length]),
      attention_mask: int64(new Array<bigint>(total).fill(1n), [1, total]),
      num_logits_to_keep: int64([BigInt(keep)], []),
    });
    this.#seen = total;
    this.#past = Object.fromEntries(
      Object.keys(this.#past).map((name) => [
        name,
        outputs[name.replace("past_key_values", "present")] as Tensor,
      ]),
    );
    return outputs;
  }

  /** Forgets all tokens. */
  reset(): void {
    this.#past = emptyPast(this.#runtime, this.session);
    this.#seen = 0;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.session.release();
  }
}

export async function openGraph(
  graph: ExportedGraph,
  { InferenceSession }: Runtime = node,
): Promise<InferenceSession> {
  const options = { intraOpNumThreads: 1, logSeverityLevel: 3 } as const;
  if (typeof graph === "string") return InferenceSession.create(graph, options);
  const files = [...graph.files].map(([name, data]) => ({ path: name.replace(/^onnx\//, ""), data }));
  const bytes = files.find(({ path }) => path.endsWith(".onnx"))?.data as Uint8Array;
  const externalData = files.filter(({ path }) => path.includes(".onnx_data"));
  return InferenceSession.create(bytes, { ...options, externalData });
}

function emptyPast({ Tensor }: Runtime, { inputMetadata }: InferenceSession): Record<string, Tensor> {
  return Object.fromEntries(
    inputMetadata.flatMap((input) => {
      if (!input.name.startsWith("past_key_values.") || !input.isTensor) return [];
      const [, heads, , size] = input.shape as [string, number, string, number];
      return [[input.name, new Tensor("float32", new Float32Array(0), [1, heads, 0, size])]];
    }),
  );
}

export function valuesOf(tensor: Tensor | undefined): Float32Array {
  return tensor?.data as Float32Array;
}

export function largestDifference(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) throw new Error(`${a.length} values, expected ${b.length}`);
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - (b[i] as number))), 0);
}
