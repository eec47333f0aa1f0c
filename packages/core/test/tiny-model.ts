import {
  type DecoderLayer,
  type DType,
  dtypeBytes,
  elementCount,
  type MlpSpec,
  type MoeModel,
  type TensorRef,
} from "@coppice/core";

export interface TinyModel {
  readonly model: MoeModel;
  /** Every tensor once, in the order of the file. */
  readonly tensors: readonly TensorRef[];
}

export interface TinyShape {
  readonly experts?: number;
  readonly topK?: number;
  readonly normalize?: boolean;
  readonly tied?: boolean;
  readonly dtype?: DType;
}

/** Three layers, the middle one dense, with biases, query and key norms; describes weights that do not exist. */
export function tinyModel({
  experts = 5,
  topK = 2,
  normalize = true,
  tied = false,
  dtype = "BF16",
}: TinyShape = {}): TinyModel {
  const tensors: TensorRef[] = [];
  let end = 0;
  const tensor = (name: string, ...shape: number[]): TensorRef => {
    const begin = end;
    end += elementCount(shape) * dtypeBytes[dtype];
    const ref = { name, dtype, shape, file: "model.safetensors", begin, end };
    tensors.push(ref);
    return ref;
  };
  const mlp = (name: string): MlpSpec => ({
    gate: tensor(`${name}.gate`, 3, 8),
    up: tensor(`${name}.up`, 3, 8),
    down: tensor(`${name}.down`, 8, 3),
    width: 3,
    activation: { kind: "silu" },
  });
  const norm = (name: string, size = 8) => ({
    kind: "rms" as const,
    weight: tensor(name, size),
    epsilon: 1e-6,
  });
  const linear = (name: string, outputs: number, inputs: number) => ({
    weight: tensor(`${name}.weight`, outputs, inputs),
    bias: tensor(`${name}.bias`, outputs),
  });
  const embedding = tensor("embedding", 11, 8);
  const layers = [0, 1, 2].map(
    (index): DecoderLayer => ({
      index,
      attentionNorm: norm(`${index}.attentionNorm`),
      attention: {
        kind: "gqa",
        heads: 2,
        kvHeads: 1,
        headDim: 4,
        scale: 0.5,
        query: linear(`${index}.query`, 8, 8),
        key: linear(`${index}.key`, 4, 8),
        value: linear(`${index}.value`, 4, 8),
        output: linear(`${index}.output`, 8, 8),
        queryNorm: { ...norm(`${index}.queryNorm`, 4), over: "head" },
        keyNorm: { ...norm(`${index}.keyNorm`, 4), over: "head" },
        rotary: { theta: 1e4, dimensions: 4, interleaved: false },
      },
      feedForwardNorm: norm(`${index}.feedForwardNorm`),
      feedForward:
        index === 1
          ? { kind: "dense", mlp: mlp("1.mlp") }
          : {
              kind: "moe",
              router: {
                weight: tensor(`${index}.router`, experts, 8),
                order: "softmax-topk",
                ...(normalize && { normalize: { power: 1 } }),
                topK,
              },
              experts: Array.from({ length: experts }, (_, expert) => mlp(`${index}.expert.${expert}`)),
            },
    }),
  );
  const finalNorm = norm("finalNorm");
  const model: MoeModel = {
    family: "tiny",
    fingerprint: "f00d",
    hiddenSize: 8,
    vocabSize: 11,
    contextLength: 32,
    embedding,
    layers,
    finalNorm,
    head: tied ? embedding : tensor("head", 11, 8),
    tied,
    endTokens: [0],
  };
  return { model, tensors };
}
