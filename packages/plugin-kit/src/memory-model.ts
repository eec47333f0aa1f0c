import {
  attentionTensors,
  CoppiceError,
  type DecoderLayer,
  elementCount,
  type MoeModel,
  mlpTensors,
  normTensors,
  routerTensors,
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
  const refs = new Map<string, TensorRef>();
  for (const ref of modelTensors(model)) {
    const known = refs.get(ref.name);
    if (known && JSON.stringify(known) !== JSON.stringify(ref)) {
      throw new Error(`two different tensors of the model are called ${ref.name}`);
    }
    if (known) continue;
    refs.set(ref.name, ref);
    tensors.set(ref.name, await weights.read(ref));
  }
  return memoryModel(model, tensors);
}

/** Every tensor that the description names, in model order; a tied head is the embedding once more. */
export function modelTensors(model: MoeModel): TensorRef[] {
  return [
    model.embedding,
    ...model.layers.flatMap(layerTensors),
    ...headTensors(model),
    ...(model.undescribed ?? []),
  ];
}

/** Every tensor of one layer. */
export function layerTensors({
  attention,
  attentionNorm,
  feedForwardNorm,
  feedForward,
}: DecoderLayer): TensorRef[] {
  const tensors = [...normTensors(attentionNorm), ...attentionTensors(attention)];
  tensors.push(...normTensors(feedForwardNorm));
  if (feedForward.kind === "dense") tensors.push(...mlpTensors(feedForward.mlp));
  if (feedForward.kind !== "moe") return tensors;
  const { experts, shared, sharedGate } = feedForward;
  tensors.push(...routerTensors(feedForward), ...experts.flatMap(mlpTensors));
  if (shared) tensors.push(...mlpTensors(shared));
  if (sharedGate) tensors.push(sharedGate);
  return tensors;
}

/** What makes logits of the last layer's output. */
export function headTensors({ finalNorm, head, headBias }: MoeModel): TensorRef[] {
  return [...normTensors(finalNorm), head, ...(headBias ? [headBias] : [])];
}
