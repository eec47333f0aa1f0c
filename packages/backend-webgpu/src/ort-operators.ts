import { CoppiceError } from "@coppice/core";
import type { Gpu, GpuBuffer, GpuMatrix, MatmulCall, NormCall } from "@coppice/kernels-webgpu";
import { encodeModel, type Graph } from "@coppice/onnx";
import type { InferenceSession, Tensor } from "onnxruntime-common";
import { type OnnxRuntime, oneAtATime } from "./onnx-runtime.js";
import { type Operators, ownOperators, type PromptAttention } from "./operators.js";
import { attentionGraph, codesGraph, gemmGraph, normGraph } from "./ort-graphs.js";

type Feeds = Record<string, Tensor>;

/**
 * Operators of ONNX Runtime's WebGPU provider, on the same device and buffers as our kernels: one session per operator and setting,
 * made when it is called first. What the provider cannot do or is known to do wrong is done by our kernels.
 */
export class OrtOperators implements Operators {
  readonly wide = true;
  /** Which shader the provider takes follows the number of rows. */
  readonly independent = false;
  readonly #gpu: Gpu;
  readonly #own: Operators;
  readonly #runtime: OnnxRuntime;
  readonly #sessions = new Map<string, InferenceSession>();

  constructor(gpu: Gpu, runtime: OnnxRuntime) {
    this.#gpu = gpu;
    this.#own = ownOperators(gpu);
    this.#runtime = runtime;
  }

  /** `Gemm`, or `MatMulNBits` where the weight is codes without zero points. */
  async multiply(call: MatmulCall): Promise<void> {
    const { x, rows, weight, bias, factor = 1, activation, y } = call;
    const { format, blocks, columns } = weight;
    const [part, ...others] = weight.parts;
    if (!part || others.length > 0 || activation || weight.rows !== 1 || !isMultiplied(weight)) {
      return this.#own.multiply(call);
    }
    const feeds: Feeds = { x: this.#tensor(x, [rows, columns]) };
    if (bias) feeds["bias"] = this.#tensor(bias, [blocks]);
    const setting = `${bias !== undefined} ${factor}`;
    const output = this.#tensor(y, [rows, blocks]);
    if (format.kind !== "quantized") {
      feeds["weight"] = this.#tensor(part.codes, [blocks, columns]);
      return this.#run("Gemm", setting, () => gemmGraph(bias !== undefined, factor), feeds, output);
    }
    const { bits, groupSize } = format;
    const groups = columns / groupSize;
    feeds["weight"] = this.#tensor(part.codes, [blocks, groups, (groupSize * bits) / 8], "uint8");
    feeds["scales"] = this.#tensor(part.scales as GpuBuffer, [blocks, groups]);
    const key = `${setting} ${bits} ${groupSize} ${blocks} ${columns}`;
    const graph = () => codesGraph(format, blocks, columns, bias !== undefined, factor);
    return this.#run("MatMulNBits", key, graph, feeds, output);
  }

  /** `SimplifiedLayerNormalization`. */
  async normalize(call: NormCall): Promise<void> {
    const { kind, epsilon, weight, bias, x, y, size, rows, stride = size } = call;
    if (kind !== "rms" || !weight || bias || !y || stride !== size) return this.#own.normalize(call);
    const feeds = { x: this.#tensor(x, [rows, size]), weight: this.#tensor(weight, [size]) };
    const graph = () => normGraph(epsilon);
    return this.#run(
      "SimplifiedLayerNormalization",
      `${epsilon}`,
      graph,
      feeds,
      this.#tensor(y, [rows, size]),
    );
  }

  /** `GroupQueryAttention`. */
  async attend(call: PromptAttention): Promise<boolean> {
    const { shape, sequences, length, queries, keys, values, y } = call;
    const { heads, kvHeads, keyDim, valueDim, chunk } = shape;
    // The provider takes heads of whole vectors alone, and may hold a logit for every pair of tokens.
    const logits = 4 * sequences * heads * length ** 2;
    if (keyDim !== valueDim || keyDim % 8 !== 0 || chunk > 0 || logits > this.#gpu.maxBindingBytes)
      return false;
    const { Tensor } = this.#runtime;
    const feeds = {
      queries: this.#tensor(queries, [sequences, length, heads * keyDim]),
      keys: this.#tensor(keys, [sequences, length, kvHeads * keyDim]),
      values: this.#tensor(values, [sequences, length, kvHeads * keyDim]),
      last: new Tensor("int32", new Int32Array(sequences).fill(length - 1), [sequences]),
      length: new Tensor("int32", Int32Array.of(length), [1]),
    };
    const output = this.#tensor(y, [sequences, length, heads * keyDim]);
    const key = JSON.stringify(shape);
    await this.#run("GroupQueryAttention", key, () => attentionGraph(shape), feeds, output);
    return true;
  }

  /** Releases the sessions; to be called before the device is destroyed. */
  async dispose(): Promise<void> {
    const sessions = [...this.#sessions.values()];
    this.#sessions.clear();
    await oneAtATime(async () => {
      for (const session of sessions) await session.release();
    });
  }

  #tensor({ handle }: GpuBuffer, dims: readonly number[], dataType: "float32" | "uint8" = "float32"): Tensor {
    return this.#runtime.Tensor.fromGpuBuffer(handle, { dataType, dims });
  }

  async #run(operator: string, setting: string, graph: () => Graph, feeds: Feeds, y: Tensor): Promise<void> {
    const gpu = this.#gpu;
    await oneAtATime(async () => {
      gpu.throwIfFailed();
      try {
        const session = await this.#session(`${operator} ${setting}`, graph);
        gpu.commands.submit();
        await session.run(feeds, { y });
      } catch (cause) {
        gpu.throwIfFailed();
        throw new CoppiceError(
          "COPPICE_BACKEND_FAILED",
          `ONNX Runtime failed in ${operator}: ${String(cause)}`,
          {
            cause,
            hint: 'use the engine "own"',
            details: { operator, setting },
          },
        );
      }
    });
  }

  async #session(key: string, graph: () => Graph): Promise<InferenceSession> {
    const known = this.#sessions.get(key);
    if (known) return known;
    const session = await this.#runtime.InferenceSession.create(encodeModel(graph()), {
      executionProviders: [{ name: "webgpu", device: this.#gpu.device }],
      // What the provider lacks must fail, not run on the host.
      extra: { session: { disable_cpu_ep_fallback: "1" } },
    });
    this.#sessions.set(key, session);
    return session;
  }
}

/** Whether a weight lies on the device as ONNX Runtime reads it: rows without padding, codes whose scales lie by themselves. */
function isMultiplied({ format, columns }: GpuMatrix): boolean {
  if (format.kind === "quantized") return !format.zeros && format.groupSize >= 16;
  return format.kind === "f32" && columns % 8 === 0;
}
