import {
  type DecoderLayer,
  elementCount,
  type LayerRange,
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

/** What a runner of some layers needs. */
export interface ModelWeights {
  /** Undefined when the first layer is not among them. */
  readonly embedding: Float32Array | undefined;
  /** By index of the layer. */
  readonly layers: ReadonlyMap<number, LayerWeights>;
  /** Inputs of the head's graph; undefined when the last layer is not among them. */
  readonly head: Feeds | undefined;
}

/** Reads tensors as values or as inputs of graphs. */
export interface TensorSource {
  readonly runtime: Runtime;
  values(ref: TensorRef, into?: Float32Array): Promise<Float32Array>;
  tensor(ref: TensorRef): Promise<Tensor>;
  /** Inputs of a norm over `size` values; a norm without a weight has ones. */
  norm(name: string, spec: NormSpec, size: number): Promise<Feeds>;
}

/** Reads the weights of a range of layers, each once and in model order, as float32. ONNX Runtime works on these very arrays, without a copy. */
export async function readWeights(
  runtime: Runtime,
  model: MoeModel,
  reader: WeightReader,
  { from, to }: LayerRange,
  signal: AbortSignal | undefined,
): Promise<ModelWeights> {
  const source = tensorSource(runtime, reader, signal);
  const embedding = from === 0 ? await source.values(model.embedding) : undefined;
  const layers = new Map<number, LayerWeights>();
  for (const layer of model.layers.slice(from, to)) {
    layers.set(layer.index, await layerWeights(source, model, layer));
  }
  const head = to === model.layers.length ? await headWeights(source, model, embedding) : undefined;
  return { embedding, layers, head };
}

async function headWeights(
  { runtime, norm, tensor }: TensorSource,
  { finalNorm, hiddenSize, head, headBias, tied }: MoeModel,
  embedding: Float32Array | undefined,
): Promise<Feeds> {
  return {
    ...(await norm("norm", finalNorm, hiddenSize)),
    head: tied && embedding ? new runtime.Tensor("float32", embedding, [...head.shape]) : await tensor(head),
    ...(headBias && { headBias: await tensor(headBias) }),
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
