import {
  CoppiceError,
  elementCount,
  type MoeModel,
  mlpTensors,
  type TensorRef,
  type WeightReader,
} from "@coppice/core";

/** A model whose weights are at hand as float32, by tensor name. */
export interface MemoryModel {
  readonly model: MoeModel;
  readonly tensors: ReadonlyMap<string, Float32Array>;
  readonly weights: WeightReader;
}

/** A model with its weights in `tensors`; `weights` serves copies, as a reader of files does. */
export function memoryModel(model: MoeModel, tensors: ReadonlyMap<string, Float32Array>): MemoryModel {
  const weights: WeightReader = {
    async read(ref, options) {
      options?.signal?.throwIfAborted();
      const values = tensors.get(ref.name);
      if (values?.length !== elementCount(ref.shape)) {
        throw new CoppiceError(
          "COPPICE_FORMAT_MISSING_TENSOR",
          `${ref.name} has ${values?.length ?? "no"} values in memory, expected ${elementCount(ref.shape)}`,
        );
      }
      if (!options?.into) return values.slice();
      options.into.set(values);
      return options.into;
    },
  };
  return { model, tensors, weights };
}

/** Reads all weights of a small model into memory. */
export async function intoMemory(model: MoeModel, weights: WeightReader): Promise<MemoryModel> {
  const tensors = new Map<string, Float32Array>();
  for (const ref of modelTensors(model)) {
    if (!tensors.has(ref.name)) tensors.set(ref.name, await weights.read(ref));
  }
  return memoryModel(model, tensors);
}

/** Every tensor of the model, in model order; a tied head is the embedding once more. */
export function modelTensors(model: MoeModel): TensorRef[] {
  const tensors = [model.embedding];
  for (const { attention, attentionNorm, feedForwardNorm, feedForward } of model.layers) {
    tensors.push(attentionNorm.weight);
    for (const { weight, bias } of [attention.query, attention.key, attention.value, attention.output]) {
      tensors.push(weight, ...(bias ? [bias] : []));
    }
    if (attention.queryNorm) tensors.push(attention.queryNorm.weight);
    if (attention.keyNorm) tensors.push(attention.keyNorm.weight);
    tensors.push(feedForwardNorm.weight);
    if (feedForward.kind === "dense") tensors.push(...mlpTensors(feedForward.mlp));
    else tensors.push(feedForward.router.weight, ...feedForward.experts.flatMap(mlpTensors));
  }
  return [...tensors, model.finalNorm.weight, model.head];
}
