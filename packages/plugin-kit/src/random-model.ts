import {
  dtypeBytes,
  elementCount,
  type LinearSpec,
  type MlpSpec,
  type MoeModel,
  type MoeSpec,
  type NormSpec,
  Rng,
  type RouterSpec,
  roundToDtype,
  type TensorRef,
} from "@coppice/core";
import { type MemoryModel, memoryModel } from "./memory-model.js";
import { randomAttention } from "./random-attention.js";
import type { RandomModelShape } from "./random-shape.js";

/** Makes tensors of a random model; values are drawn in the order of the calls. */
export interface RandomTensors {
  tensor(name: string, size: readonly number[], value: (rng: Rng) => number): TensorRef;
  /** [outputs, inputs], scaled so that outputs are about as large as inputs. */
  matrix(name: string, outputs: number, inputs: number): TensorRef;
  linear(name: string, outputs: number, inputs: number, bias: boolean | undefined): LinearSpec;
  /** A root-mean-square norm. */
  norm(name: string, size: number): NormSpec & { readonly kind: "rms" };
}

/**
 * A model with random weights in memory, scaled so that routing and logits vary as those of a trained model do.
 * Equal shapes (the seed is part of them) give equal models.
 */
export function randomModel(shape: RandomModelShape = {}): MemoryModel {
  const { layers = 2, hidden = 16, width = 12, vocab = 40, tied = false } = shape;
  const tensors = new Map<string, Float32Array>();
  const make = randomTensors(shape, tensors);
  const norm = (name: string): NormSpec => {
    const rms = make.norm(name, hidden);
    if (shape.norm !== "layer") return rms;
    return {
      ...rms,
      kind: "layer",
      bias: make.tensor(`${name}.bias`, [hidden], (rng) => 0.2 * rng.normal()),
    };
  };
  const embedding = make.tensor("embedding", [vocab, hidden], (rng) => rng.normal());
  const described = Array.from({ length: layers }, (_, index): MoeModel["layers"][number] => {
    const at = (name: string) => `layers.${index}.${name}`;
    return {
      index,
      attentionNorm: norm(at("attentionNorm")),
      attention: randomAttention(shape, make, index, hidden),
      feedForwardNorm: norm(at("feedForwardNorm")),
      feedForward: shape.denseLayers?.includes(index)
        ? { kind: "dense", mlp: randomMlp(shape, make, at("mlp"), hidden, width) }
        : randomMoe(shape, make, at, hidden, width),
    };
  });
  const model: MoeModel = {
    family: "random",
    fingerprint: `random:${JSON.stringify(shape)}`,
    hiddenSize: hidden,
    vocabSize: vocab,
    contextLength: shape.context ?? 256,
    embedding,
    layers: described,
    finalNorm: norm("finalNorm"),
    head: tied ? embedding : make.matrix("head", vocab, hidden),
    tied,
    endTokens: [0],
    ...(shape.headBias && { headBias: make.tensor("headBias", [vocab], (rng) => rng.normal()) }),
    ...(shape.embeddingScale !== undefined && { embeddingScale: shape.embeddingScale }),
    ...(shape.residualScale !== undefined && { residualScale: shape.residualScale }),
    ...(shape.logitScale !== undefined && { logitScale: shape.logitScale }),
  };
  return memoryModel(model, tensors);
}

function randomMoe(
  shape: RandomModelShape,
  make: RandomTensors,
  at: (name: string) => string,
  hidden: number,
  width: number,
): MoeSpec {
  const { experts = 4, topK = 2, normalize = true, activation, sharedWidth } = shape;
  const { order = "softmax-topk", bias, correction, ...more } = shape.router ?? {};
  const offsets = (name: string, spread: number) =>
    make.tensor(at(name), [experts], (rng) => spread * rng.normal());
  const router: RouterSpec = {
    weight: make.matrix(at("router"), experts, hidden),
    ...(bias && { bias: offsets("router.bias", 0.5) }),
    ...(correction && { correction: offsets("router.correction", 0.2) }),
    ...more,
    order,
    ...(normalize && { normalize: normalize === true ? { power: 1 } : normalize }),
    topK,
  };
  return {
    kind: "moe",
    router,
    experts: Array.from({ length: experts }, (_, expert) => {
      const mlp = randomMlp(shape, make, at(`experts.${expert}`), hidden, width);
      return activation ? { ...mlp, activation } : mlp;
    }),
    ...(sharedWidth && { shared: randomMlp(shape, make, at("shared"), hidden, sharedWidth) }),
    ...(shape.sharedGate && { sharedGate: make.matrix(at("sharedGate"), 1, hidden) }),
  };
}

function randomMlp(
  { activation, mlpBias }: RandomModelShape,
  make: RandomTensors,
  name: string,
  hidden: number,
  width: number,
): MlpSpec {
  const gated = activation?.kind !== "relu2";
  const bias = (part: string, size: number) =>
    make.tensor(`${name}.${part}`, [size], (rng) => 0.3 * rng.normal());
  return {
    ...(gated && { gate: make.matrix(`${name}.gate`, width, hidden) }),
    up: make.matrix(`${name}.up`, width, hidden),
    down: make.matrix(`${name}.down`, hidden, width),
    ...(mlpBias && gated && { gateBias: bias("gateBias", width) }),
    ...(mlpBias && { upBias: bias("upBias", width), downBias: bias("downBias", hidden) }),
    width,
    activation: { kind: gated ? "silu" : "relu2" },
  };
}

function randomTensors(
  { dtype = "F32", seed = 1 }: RandomModelShape,
  tensors: Map<string, Float32Array>,
): RandomTensors {
  const rng = Rng.fromSeed(seed);
  let end = 0;
  const tensor: RandomTensors["tensor"] = (name, size, value) => {
    const values = Float32Array.from({ length: elementCount(size) }, () => value(rng));
    roundToDtype(values, dtype);
    tensors.set(name, values);
    const begin = end;
    end += values.length * dtypeBytes[dtype];
    return { name, dtype, shape: size, file: "memory.safetensors", begin, end };
  };
  const matrix: RandomTensors["matrix"] = (name, outputs, inputs) =>
    tensor(name, [outputs, inputs], () => (1.5 * rng.normal()) / Math.sqrt(inputs));
  return {
    tensor,
    matrix,
    linear: (name, outputs, inputs, bias) => ({
      weight: matrix(`${name}.weight`, outputs, inputs),
      ...(bias && { bias: tensor(`${name}.bias`, [outputs], () => 0.3 * rng.normal()) }),
    }),
    norm: (name, size) => ({
      kind: "rms",
      weight: tensor(name, [size], () => 1 + 0.2 * rng.normal()),
      epsilon: 1e-5,
    }),
  };
}
