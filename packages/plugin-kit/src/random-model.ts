import {
  type DecoderLayer,
  type DType,
  dtypeBytes,
  elementCount,
  type GatedMlpSpec,
  type LinearSpec,
  type MoeModel,
  Rng,
  roundToDtype,
  type TensorRef,
} from "@coppice/core";
import { type MemoryModel, memoryModel } from "./memory-model.js";

/** What a random model looks like; every field has a small default. */
export interface RandomModelShape {
  readonly seed?: number;
  readonly layers?: number;
  readonly hidden?: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly experts?: number;
  readonly topK?: number;
  /** Rows of gate and up of every expert and dense MLP. */
  readonly width?: number;
  readonly vocab?: number;
  /** Divide the chosen gate weights by their sum. */
  readonly normalize?: boolean;
  readonly slidingWindow?: number;
  /** Norms over the heads of queries and keys. */
  readonly qkNorm?: boolean;
  /** Biases on query, key, value and output. */
  readonly bias?: boolean;
  /** Layers that have one dense MLP in place of experts. */
  readonly denseLayers?: readonly number[];
  /** The head is the embedding. */
  readonly tied?: boolean;
  /** Dimensions of each head that rotate. */
  readonly rotaryDimensions?: number;
  /** Stored dtype; the values in memory are rounded to it. */
  readonly dtype?: DType;
}

/**
 * A model with random weights in memory, scaled so that routing and logits vary as those of a trained model do.
 * Equal shapes (the seed is part of them) give equal models.
 */
export function randomModel(shape: RandomModelShape = {}): MemoryModel {
  const { layers = 2, hidden = 16, heads = 4, kvHeads = 2, headDim = 8, experts = 4, topK = 2 } = shape;
  const { width = 12, vocab = 40, dtype = "F32", tied = false, seed = 1 } = shape;
  const rng = Rng.fromSeed(seed);
  const tensors = new Map<string, Float32Array>();
  let end = 0;

  const tensor = (name: string, size: readonly number[], value: () => number): TensorRef => {
    const values = Float32Array.from({ length: elementCount(size) }, value);
    roundToDtype(values, dtype);
    tensors.set(name, values);
    const begin = end;
    end += values.length * dtypeBytes[dtype];
    return { name, dtype, shape: size, file: "memory.safetensors", begin, end };
  };
  const matrix = (name: string, outputs: number, inputs: number, gain = 1.5) =>
    tensor(name, [outputs, inputs], () => (gain * rng.normal()) / Math.sqrt(inputs));
  const norm = (name: string, size: number) => ({
    weight: tensor(name, [size], () => 1 + 0.2 * rng.normal()),
    epsilon: 1e-5,
  });
  const linear = (name: string, outputs: number, inputs: number): LinearSpec => ({
    weight: matrix(`${name}.weight`, outputs, inputs),
    ...(shape.bias && { bias: tensor(`${name}.bias`, [outputs], () => 0.3 * rng.normal()) }),
  });
  const mlp = (name: string): GatedMlpSpec => ({
    gate: matrix(`${name}.gate`, width, hidden),
    up: matrix(`${name}.up`, width, hidden),
    down: matrix(`${name}.down`, hidden, width),
    width,
    activation: "silu",
  });

  const embedding = tensor("embedding", [vocab, hidden], () => rng.normal());
  const described = Array.from({ length: layers }, (_, index): DecoderLayer => {
    const at = (name: string) => `layers.${index}.${name}`;
    return {
      index,
      attentionNorm: norm(at("attentionNorm"), hidden),
      attention: {
        kind: "gqa",
        heads,
        kvHeads,
        headDim,
        scale: headDim ** -0.5,
        query: linear(at("query"), heads * headDim, hidden),
        key: linear(at("key"), kvHeads * headDim, hidden),
        value: linear(at("value"), kvHeads * headDim, hidden),
        output: linear(at("output"), hidden, heads * headDim),
        ...(shape.qkNorm && {
          queryNorm: norm(at("queryNorm"), headDim),
          keyNorm: norm(at("keyNorm"), headDim),
        }),
        rotary: { theta: 10_000, dimensions: shape.rotaryDimensions ?? headDim },
        ...(shape.slidingWindow !== undefined && { slidingWindow: shape.slidingWindow }),
      },
      feedForwardNorm: norm(at("feedForwardNorm"), hidden),
      feedForward: shape.denseLayers?.includes(index)
        ? { kind: "dense", mlp: mlp(at("mlp")) }
        : {
            kind: "moe",
            router: {
              weight: matrix(at("router"), experts, hidden),
              order: "softmax-topk",
              normalize: shape.normalize ?? true,
              topK,
            },
            experts: Array.from({ length: experts }, (_, expert) => mlp(at(`experts.${expert}`))),
          },
    };
  });
  const finalNorm = norm("finalNorm", hidden);
  const model: MoeModel = {
    family: "random",
    fingerprint: `random:${JSON.stringify(shape)}`,
    hiddenSize: hidden,
    vocabSize: vocab,
    contextLength: 256,
    embedding,
    layers: described,
    finalNorm,
    head: tied ? embedding : matrix("head", vocab, hidden),
    tied,
    endTokens: [0],
  };
  return memoryModel(model, tensors);
}
