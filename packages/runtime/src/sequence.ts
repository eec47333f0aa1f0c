import { CoppiceError, mostLikely, throwIfAborted } from "@coppice/core";
import type { Decoder } from "@coppice/evaluate";
import { disposeTensors, emptyPast, keepNewest, settleTokens, withRoom } from "./cache-tensors.js";
import { messageOf } from "./exported-folder.js";
import type { GraphInterface } from "./graph-interface.js";
import type { InferenceSession, OnnxRuntime, Tensor, Tensors } from "./onnx-runtime.js";
import type { SpanBias } from "./span-bias.js";
import type { Turns } from "./turns.js";

/** A loaded graph, and what all its sequences share. */
export interface LoadedGraph {
  readonly runtime: OnnxRuntime;
  readonly session: InferenceSession;
  readonly io: GraphInterface;
  readonly turns: Turns;
  /** Most tokens of one run. */
  readonly chunk: number;
  readonly ones: Ones;
  readonly bias: SpanBias;
  /** See `OpenModelOptions.inPlace`; only where the graph can. */
  readonly inPlace: boolean;
  /** See `ExportedConfig`. */
  readonly sparesPresent: boolean;
  /** True once the session is released. */
  readonly released: () => boolean;
}

/** Attention masks of one sequence, which are all 1: views of one array, made no longer than texts are. */
export class Ones {
  #values = new BigInt64Array(1024).fill(1n);

  upTo(length: number): BigInt64Array {
    if (length > this.#values.length) this.#values = new BigInt64Array(2 * length).fill(1n);
    return this.#values.subarray(0, length);
  }
}

/** The chosen experts of one MoE layer, [tokens, k], one row per token of the run. */
export interface LayerExperts {
  readonly layer: number;
  readonly experts: Int32Array;
}

/**
 * Tokens with their keys and values. What a run puts out is fed to the next one as it is, so that nothing is copied in
 * JavaScript; on a GPU it stays there. In place, what is new is written into buffers that are larger than needed, until they are
 * full: by the runs, or here, where a graph puts it out alone.
 */
export class Sequence implements Decoder {
  readonly tokens: number[];
  /** Chosen experts of the tokens of the last call; empty unless the graph gives them and they are wanted. */
  experts: readonly LayerExperts[] = [];
  readonly #graph: LoadedGraph;
  /** Outputs that are wanted, besides those of the cache. */
  readonly #wanted: InferenceSession.FetchesType;
  /** The output with what is new alone, where that is kept here. */
  readonly #newest: string | undefined;
  /** [1, heads, at least as many as heads keep of the tokens, size] each */
  #past: Tensors;
  #unseen: number;

  /**
   * @param held tokens whose keys and values `past` has; the first call may begin with them
   * @param wantsExperts fill `experts`
   */
  constructor(graph: LoadedGraph, held: readonly number[] = [], past?: Tensors, wantsExperts = false) {
    this.#graph = graph;
    this.tokens = [...held];
    this.#unseen = held.length;
    this.#past = past ?? emptyPast(graph);
    this.#newest = graph.inPlace ? graph.io.newest : undefined;
    // Whatever comes out is copied by onnxruntime-node, whole caches too, also where they are extended in place.
    const newest = this.#newest === undefined ? [] : [this.#newest];
    const experts = wantsExperts ? graph.io.experts.map(({ output }) => output) : [];
    this.#wanted = Object.fromEntries(["logits", ...experts, ...newest].map((name) => [name, null]));
  }

  /** Keys and values by the names of graph inputs. */
  get past(): Tensors {
    return this.#past;
  }

  async logits(tokens: Int32Array, signal?: AbortSignal): Promise<Float32Array> {
    let rest = tokens.subarray(this.#unseen);
    this.#unseen = 0;
    this.experts = [];
    for (;;) {
      throwIfAborted(signal, "generating");
      const part = rest.subarray(0, this.#graph.chunk);
      rest = rest.subarray(part.length);
      const logits = await this.#graph.turns.take(() => this.#run(part, signal));
      if (rest.length === 0) return logits;
    }
  }

  async mostLikely(tokens: Int32Array, signal?: AbortSignal): Promise<number> {
    return mostLikely(await this.logits(tokens, signal));
  }

  /** Gives memory back that the garbage collector does not know of. */
  dispose(): void {
    disposeTensors(this.#past);
    this.#past = {};
  }

  async #run(tokens: Int32Array, signal: AbortSignal | undefined): Promise<Float32Array> {
    const { runtime, session, io, ones, bias, released } = this.#graph;
    if (released()) throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the model was disposed");
    // Its turn may have come long after it asked.
    throwIfAborted(signal, "generating");
    const { length } = tokens;
    const past = this.tokens.length;
    this.#past = withRoom(this.#graph, this.#past, past, length);
    const int64 = (values: BigInt64Array, dims: readonly number[]) =>
      new runtime.Tensor("int64", values, dims);
    const feeds: Record<string, Tensor> = {
      ...this.#past,
      input_ids: int64(
        integers(length, (i) => tokens[i] as number),
        [1, length],
      ),
      attention_mask: int64(ones.upTo(past + length), [1, past + length]),
    };
    if (io.takesPositions)
      feeds["position_ids"] = int64(
        integers(length, (i) => past + i),
        [1, length],
      );
    for (const { input, span } of io.biases) {
      const { data, places } = bias.values(span, past, length);
      feeds[input] = new runtime.Tensor("float32", data, [1, 1, length, places]);
    }
    if (io.keepsLogits) {
      const spares = this.#graph.sparesPresent && this.#newest !== undefined && past > 0 && length === 1;
      feeds["num_logits_to_keep"] = int64(BigInt64Array.of(spares ? -1n : 1n), []);
    }
    let outputs: InferenceSession.ReturnType;
    try {
      outputs = await session.run(feeds, this.#fetches());
    } catch (cause) {
      throw new CoppiceError("COPPICE_BACKEND_FAILED", `ONNX Runtime failed: ${messageOf(cause)}`, { cause });
    }
    for (const token of tokens) this.tokens.push(token);
    if (this.#newest !== undefined) {
      keepNewest(this.#graph, this.#past, past, outputs[this.#newest] as Tensor);
    } else {
      if (!this.#graph.inPlace) {
        const before = this.#past;
        this.#past = Object.fromEntries(
          io.cache.map(({ input, output }) => [input, outputs[output] as Tensor]),
        );
        disposeTensors(before);
      }
      settleTokens(this.#graph, this.#past, past, length);
    }
    await this.#readExperts(outputs);
    return lastRow(outputs["logits"] as Tensor);
  }

  /** What a run puts out, and where; null: wherever it likes. */
  #fetches(): InferenceSession.FetchesType {
    const { io, inPlace } = this.#graph;
    if (this.#newest !== undefined) return this.#wanted;
    const cache = io.cache.map(({ input, output }): [string, Tensor | null] => [
      output,
      inPlace ? (this.#past[input] as Tensor) : null,
    ]);
    return { ...this.#wanted, ...Object.fromEntries(cache) };
  }

  async #readExperts(outputs: InferenceSession.ReturnType): Promise<void> {
    const now: LayerExperts[] = [];
    for (const { output, layer } of this.#graph.io.experts) {
      const tensor = outputs[output] as Tensor | undefined;
      if (!tensor) continue;
      const data = await tensor.getData(true);
      now.push({ layer, experts: Int32Array.from(data as ArrayLike<number>, Number) });
    }
    this.experts =
      this.experts.length === 0
        ? now
        : this.experts.map(({ layer, experts }, i) => ({
            layer,
            experts: Int32Array.of(...experts, ...(now[i]?.experts ?? [])),
          }));
  }
}

function integers(length: number, value: (i: number) => number): BigInt64Array {
  const values = new BigInt64Array(length);
  for (let i = 0; i < length; i++) values[i] = BigInt(value(i));
  return values;
}

/** Logits of the last token, [vocab]. */
async function lastRow(logits: Tensor): Promise<Float32Array> {
  const vocab = logits.dims.at(-1) as number;
  // From where it is; a copy on a GPU is given back.
  const data = await logits.getData(true);
  if (data instanceof Float32Array) return data.subarray(data.length - vocab);
  throw new CoppiceError("COPPICE_BACKEND_UNSUPPORTED", `logits are ${logits.type}, expected float32`);
}
