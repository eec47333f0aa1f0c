import { CoppiceError, throwIfAborted } from "@coppice/core";
import { type Decoder, mostLikely } from "@coppice/evaluate";
import { messageOf } from "./exported-folder.js";
import type { GraphInterface } from "./graph-interface.js";
import type { InferenceSession, OnnxRuntime, Tensor, Tensors } from "./onnx-runtime.js";
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
  /** See `OpenModelOptions.inPlace`; only where the graph can. */
  readonly inPlace: boolean;
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

/** Tokens that buffers of keys and values have room for beyond those that need it: at least so many, and a quarter more. */
const spareTokens = 64;

/**
 * Tokens with their keys and values. What a run puts out is fed to the next one as it is, so that nothing is copied in
 * JavaScript; on a GPU it stays there. In place, runs write into buffers that are larger than needed, until they are full.
 */
export class Sequence implements Decoder {
  readonly tokens: number[];
  /** Chosen experts of the tokens of the last call; empty unless the graph gives them and they are wanted. */
  experts: readonly LayerExperts[] = [];
  readonly #graph: LoadedGraph;
  /** Outputs that are wanted. */
  readonly #wanted: readonly string[];
  /** [1, heads, at least as many as there are tokens, size] each */
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
    this.#wanted = ["logits", ...(wantsExperts ? graph.io.experts.map(({ output }) => output) : [])];
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
    const { runtime, session, io, ones, inPlace, released } = this.#graph;
    if (released()) throw new CoppiceError("COPPICE_BACKEND_DISPOSED", "the model was disposed");
    // Its turn may have come long after it asked.
    throwIfAborted(signal, "generating");
    const { length } = tokens;
    const past = this.tokens.length;
    if (inPlace) this.#makeRoom(past + length);
    const int64 = (values: BigInt64Array, dims: readonly number[]) =>
      new runtime.Tensor("int64", values, dims);
    const feeds: Record<string, Tensor> = {
      ...this.#past,
      input_ids: int64(BigInt64Array.from(tokens, BigInt), [1, length]),
      attention_mask: int64(ones.upTo(past + length), [1, past + length]),
    };
    if (io.takesPositions) {
      const positions = new BigInt64Array(length);
      for (let i = 0; i < length; i++) positions[i] = BigInt(past + i);
      feeds["position_ids"] = int64(positions, [1, length]);
    }
    if (io.keepsLogits) feeds["num_logits_to_keep"] = int64(BigInt64Array.of(1n), []);
    let outputs: InferenceSession.ReturnType;
    try {
      outputs = await session.run(feeds, this.#fetches());
    } catch (cause) {
      throw new CoppiceError("COPPICE_BACKEND_FAILED", `ONNX Runtime failed: ${messageOf(cause)}`, { cause });
    }
    for (const token of tokens) this.tokens.push(token);
    if (!inPlace) {
      const before = this.#past;
      this.#past = Object.fromEntries(
        io.cache.map(({ input, output }) => [input, outputs[output] as Tensor]),
      );
      disposeTensors(before);
    }
    await this.#readExperts(outputs);
    return lastRow(outputs["logits"] as Tensor);
  }

  /** What a run puts out, and where; null: wherever it likes. */
  #fetches(): InferenceSession.FetchesType {
    const { io, inPlace } = this.#graph;
    const cache = io.cache.map(({ input, output }): [string, Tensor | null] => [
      output,
      inPlace ? (this.#past[input] as Tensor) : null,
    ]);
    return Object.fromEntries([...this.#wanted.map((name): [string, null] => [name, null]), ...cache]);
  }

  /** Moves keys and values to larger buffers unless there is room for so many tokens. */
  #makeRoom(tokens: number): void {
    const [any] = Object.values(this.#past);
    if ((any?.dims[2] as number) >= tokens) return;
    const room = tokens + Math.max(spareTokens, tokens >> 2);
    this.#past = firstTokens(this.#graph, this.#past, this.tokens.length, room) as Tensors;
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

/** Logits of the last token, [vocab]. */
async function lastRow(logits: Tensor): Promise<Float32Array> {
  const vocab = logits.dims.at(-1) as number;
  // From where it is; a copy on a GPU is given back.
  const data = await logits.getData(true);
  if (data instanceof Float32Array) return data.subarray(data.length - vocab);
  throw new CoppiceError("COPPICE_BACKEND_UNSUPPORTED", `logits are ${logits.type}, expected float32`);
}

function emptyPast({ runtime, io }: LoadedGraph): Tensors {
  return Object.fromEntries(
    io.cache.map((tensor) => [tensor.input, newTensor(runtime, tensor, 0, emptyData(tensor.type, 0))]),
  );
}

/**
 * A copy of the keys and values of the first `length` tokens; undefined for tensors that are not in this memory.
 * @param past [1, heads, at least `length`, size] each
 * @param room tokens that the copy has room for
 */
export function firstTokens(
  { runtime, io }: LoadedGraph,
  past: Tensors,
  length: number,
  room = length,
): Tensors | undefined {
  const out: Record<string, Tensor> = {};
  for (const tensor of io.cache) {
    const held = past[tensor.input] as Tensor;
    if (held.location !== "cpu") return undefined;
    const { heads, size, type } = tensor;
    const data = held.data as Float32Array | Uint16Array;
    const rows = held.dims[2] as number;
    const part = emptyData(type, heads * room * size);
    for (let head = 0; head < heads; head++) {
      part.set(data.subarray(head * rows * size, (head * rows + length) * size), head * room * size);
    }
    out[tensor.input] = newTensor(runtime, tensor, room, part);
  }
  return out;
}

function emptyData(type: "float32" | "float16", length: number): Float32Array | Uint16Array {
  return type === "float32" ? new Float32Array(length) : new Uint16Array(length);
}

function newTensor(
  runtime: OnnxRuntime,
  { heads, size, type }: GraphInterface["cache"][number],
  length: number,
  data: Float32Array | Uint16Array,
): Tensor {
  const dims = [1, heads, length, size];
  return type === "float32"
    ? new runtime.Tensor(type, data as Float32Array, dims)
    : new runtime.Tensor(type, data as Uint16Array, dims);
}

/** Tensors in this memory belong to the garbage collector, others are given back at once. */
function disposeTensors(tensors: Tensors): void {
  for (const tensor of Object.values(tensors)) if (tensor.location !== "cpu") tensor.dispose();
}
