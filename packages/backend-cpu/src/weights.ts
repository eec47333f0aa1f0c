import {
  type DecoderLayer,
  elementCount,
  type MlpSpec,
  type MoeModel,
  type NormSpec,
  type RouterSpec,
  type TensorRef,
  throwIfAborted,
  type WeightReader,
} from "@coppice/core";
import { type MlpEntries, mlpParts } from "@coppice/onnx";
import type { Tensor } from "onnxruntime-node";
import { attentionFeeds } from "./attention-weights.js";
import type { Feeds, Runtime } from "./sessions.js";

/** gate and up are [width, hidden], down is [hidden, width], biases are vectors. */
export type MlpWeights = MlpEntries<Tensor>;

export interface RouterWeights {
  /** [experts, hidden] */
  readonly weight: Float32Array;
  /** [experts] */
  readonly bias: Float32Array | undefined;
  readonly correction: Float32Array | undefined;
}

export interface LayerWeights {
  /** Inputs of the attention graph under their names there, but for the router. */
  readonly attention: Feeds;
  /** Undefined in a dense layer. */
  readonly router: RouterWeights | undefined;
  /** The experts of an MoE layer, or the one MLP of a dense layer. */
  readonly mlps: readonly MlpWeights[];
  /** Inputs of the shared expert's graph, when there is one. */
  readonly shared: Feeds | undefined;
}

export interface ModelWeights {
  readonly embedding: Float32Array;
  readonly layers: readonly LayerWeights[];
  /** Inputs of the head's graph. */
  readonly head: Feeds;
}

/** Reads tensors as values or as inputs of graphs. */
export interface TensorSource {
  readonly runtime: Runtime;
  values(ref: TensorRef, into?: Float32Array): Promise<Float32Array>;
  tensor(ref: TensorRef): Promise<Tensor>;
  /** Inputs of a norm over `size` values; a norm without a weight has ones. */
  norm(name: string, spec: NormSpec, size: number): Promise<Feeds>;
}

/** Reads every weight once, in model order, as float32. ONNX Runtime works on these very arrays, without a copy. */
export async function readWeights(
  runtime: Runtime,
  model: MoeModel,
  reader: WeightReader,
  signal: AbortSignal | undefined,
): Promise<ModelWeights> {
  const source = tensorSource(runtime, reader, signal);
  const { values, tensor, norm } = source;
  const embedding = await values(model.embedding);
  const layers: LayerWeights[] = [];
  for (const layer of model.layers) layers.push(await layerWeights(source, model, layer));
  return {
    embedding,
    layers,
    head: {
      ...(await norm("norm", model.finalNorm, model.hiddenSize)),
      head: model.tied
        ? new runtime.Tensor("float32", embedding, [...model.embedding.shape])
        : await tensor(model.head),
      ...(model.headBias && { headBias: await tensor(model.headBias) }),
    },
  };
}

async function layerWeights(
  source: TensorSource,
  model: MoeModel,
  layer: DecoderLayer,
): Promise<LayerWeights> {
  const { feedForward } = layer;
  const attention = await attentionFeeds(source, model, layer);
  if (feedForward.kind === "other") return { attention, router: undefined, mlps: [], shared: undefined };
  if (feedForward.kind === "dense") {
    const mlps = [await mlpWeights(source, feedForward.mlp)];
    return { attention, router: undefined, mlps, shared: undefined };
  }
  const mlps: MlpWeights[] = [];
  for (const expert of feedForward.experts) mlps.push(await mlpWeights(source, expert));
  const router = await routerWeights(source, feedForward.router);
  const { shared, sharedGate } = feedForward;
  return {
    attention,
    router,
    mlps,
    shared: shared && {
      ...(await mlpWeights(source, shared)),
      ...(sharedGate && { projection: await source.tensor(sharedGate) }),
    },
  };
}

async function mlpWeights({ tensor }: TensorSource, spec: MlpSpec): Promise<MlpWeights> {
  const weights: Partial<Record<(typeof mlpParts)[number], Tensor>> = {};
  for (const part of mlpParts) {
    const ref = spec[part];
    if (ref) weights[part] = await tensor(ref);
  }
  return weights as MlpWeights;
}

async function routerWeights({ values }: TensorSource, spec: RouterSpec): Promise<RouterWeights> {
  return {
    weight: await values(spec.weight),
    bias: spec.bias && (await values(spec.bias)),
    correction: spec.correction && (await values(spec.correction)),
  };
}

function tensorSource(runtime: Runtime, reader: WeightReader, signal: AbortSignal | undefined): TensorSource {
  const values = async (ref: TensorRef, into = new Float32Array(elementCount(ref.shape))) => {
    throwIfAborted(signal, `reading ${ref.name}`);
    return reader.read(ref, { into, ...(signal && { signal }) });
  };
  const tensor = async (ref: TensorRef) => new runtime.Tensor("float32", await values(ref), [...ref.shape]);
  const norm = async (name: string, { weight, bias }: NormSpec, size: number) => ({
    [name]: weight
      ? await tensor(weight)
      : new runtime.Tensor("float32", new Float32Array(size).fill(1), [size]),
    ...(bias && { [`${name}Bias`]: await tensor(bias) }),
  });
  return { runtime, values, tensor, norm };
}
