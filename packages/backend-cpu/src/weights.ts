import {
  type DecoderLayer,
  elementCount,
  type GatedMlpSpec,
  type LinearSpec,
  type MoeModel,
  type TensorRef,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import { headLayout, padHeads, padNorm } from "./head-layout.js";
import type { Feeds, Runtime } from "./sessions.js";

/** gate and up are [width, hidden], down is [hidden, width]. */
export interface MlpWeights {
  readonly gate: Tensor;
  readonly up: Tensor;
  readonly down: Tensor;
}

export interface LayerWeights {
  /** Inputs of the attention graph under their names there, but for the router. */
  readonly attention: Feeds;
  /** [experts, hidden]; undefined in a dense layer. */
  readonly router: Float32Array | undefined;
  /** The experts of an MoE layer, or the one MLP of a dense layer. */
  readonly mlps: readonly MlpWeights[];
}

export interface ModelWeights {
  readonly embedding: Float32Array;
  readonly layers: readonly LayerWeights[];
  readonly norm: Tensor;
  readonly head: Tensor;
}

/** Reads every weight once, in model order, as float32. ONNX Runtime works on these very arrays, without a copy. */
export async function readWeights(
  { Tensor }: Runtime,
  model: MoeModel,
  reader: WeightReader,
  signal: AbortSignal | undefined,
): Promise<ModelWeights> {
  const values = async (ref: TensorRef, into = new Float32Array(elementCount(ref.shape))) => {
    throwIfAborted(signal, `reading ${ref.name}`);
    return reader.read(ref, { into, ...(signal && { signal }) });
  };
  const tensor = async (ref: TensorRef) => new Tensor("float32", await values(ref), [...ref.shape]);
  const mlp = async (spec: GatedMlpSpec): Promise<MlpWeights> => ({
    gate: await tensor(spec.gate),
    up: await tensor(spec.up),
    down: await tensor(spec.down),
  });

  /** Query, key and value maps one below the other; a missing bias counts as zeros when another has one. */
  const stacked = async (linears: readonly LinearSpec[]) => {
    const outputs = linears.map(({ weight }) => weight.shape[0] as number);
    const inputs = linears[0]?.weight.shape[1] as number;
    const total = outputs.reduce((sum, size) => sum + size, 0);
    const weight = new Float32Array(total * inputs);
    const bias = linears.some((linear) => linear.bias) ? new Float32Array(total) : undefined;
    let at = 0;
    for (const [i, linear] of linears.entries()) {
      const end = at + (outputs[i] as number);
      await values(linear.weight, weight.subarray(at * inputs, end * inputs));
      if (linear.bias && bias) await values(linear.bias, bias.subarray(at, end));
      at = end;
    }
    return { weight, bias, inputs };
  };

  const attentionFeeds = async ({
    attention,
    attentionNorm,
    feedForwardNorm,
  }: DecoderLayer): Promise<Feeds> => {
    const { query, key, value, output, queryNorm, keyNorm } = attention;
    const layout = headLayout(attention);
    const vector = (data: Float32Array) => new Tensor("float32", data, [data.length]);
    const matrix = (data: Float32Array, rows: number) =>
      new Tensor("float32", data, [rows, data.length / rows]);
    const qkv = await stacked([query, key, value]);
    const heads = attention.heads + 2 * attention.kvHeads;
    return {
      attentionNorm: await tensor(attentionNorm.weight),
      qkv: matrix(padHeads(qkv.weight, layout, qkv.inputs), heads * layout.size),
      ...(qkv.bias && { qkvBias: vector(padHeads(qkv.bias, layout, 1)) }),
      ...(queryNorm && { queryNorm: vector(padNorm(await values(queryNorm.weight), layout)) }),
      ...(keyNorm && { keyNorm: vector(padNorm(await values(keyNorm.weight), layout)) }),
      output: matrix(padHeads(await values(output.weight), layout, 1), model.hiddenSize),
      ...(output.bias && { outputBias: await tensor(output.bias) }),
      feedForwardNorm: await tensor(feedForwardNorm.weight),
    };
  };

  const embedding = await values(model.embedding);
  const layers: LayerWeights[] = [];
  for (const layer of model.layers) {
    const { feedForward } = layer;
    const attention = await attentionFeeds(layer);
    const mlps: MlpWeights[] = [];
    if (feedForward.kind === "dense") mlps.push(await mlp(feedForward.mlp));
    else for (const expert of feedForward.experts) mlps.push(await mlp(expert));
    const router = feedForward.kind === "moe" ? await values(feedForward.router.weight) : undefined;
    layers.push({ attention, router, mlps });
  }
  const norm = await tensor(model.finalNorm.weight);
  const head = model.tied
    ? new Tensor("float32", embedding, [...model.embedding.shape])
    : await tensor(model.head);
  return { embedding, layers, norm, head };
}
