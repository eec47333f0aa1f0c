import {
  elementCount,
  type GatedMlpSpec,
  type LinearSpec,
  type MoeModel,
  type TensorRef,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
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

  /** Linear maps of one input, one below the other; a missing bias counts as zeros when another has one. */
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
    return {
      weight: new Tensor("float32", weight, [total, inputs]),
      bias: bias && new Tensor("float32", bias, [total]),
    };
  };

  const embedding = await values(model.embedding);
  const layers: LayerWeights[] = [];
  for (const { attention, attentionNorm, feedForwardNorm, feedForward } of model.layers) {
    const { query, key, value, output, queryNorm, keyNorm } = attention;
    const qkv = await stacked([query, key, value]);
    const projection = await stacked([output]);
    const attentionFeeds: Feeds = {
      attentionNorm: await tensor(attentionNorm.weight),
      qkv: qkv.weight,
      ...(qkv.bias && { qkvBias: qkv.bias }),
      ...(queryNorm && { queryNorm: await tensor(queryNorm.weight) }),
      ...(keyNorm && { keyNorm: await tensor(keyNorm.weight) }),
      output: projection.weight,
      ...(projection.bias && { outputBias: projection.bias }),
      feedForwardNorm: await tensor(feedForwardNorm.weight),
    };
    const mlps: MlpWeights[] = [];
    if (feedForward.kind === "dense") mlps.push(await mlp(feedForward.mlp));
    else for (const expert of feedForward.experts) mlps.push(await mlp(expert));
    const router = feedForward.kind === "moe" ? await values(feedForward.router.weight) : undefined;
    layers.push({ attention: attentionFeeds, router, mlps });
  }
  const norm = await tensor(model.finalNorm.weight);
  const head = model.tied
    ? new Tensor("float32", embedding, [...model.embedding.shape])
    : await tensor(model.head);
  return { embedding, layers, norm, head };
}
