import {
  type AttentionSpec,
  type MlpSpec,
  type MoeModel,
  type MoeSpec,
  moeLayers,
  type NormSpec,
} from "./model.js";
import type { Plan } from "./plan.js";
import { elementCount, storedBytes, type TensorRef } from "./tensor.js";

export interface ModelSize {
  /** All parameters; a tied head counts once. Scales of quantized weights are no parameters. */
  parameters: number;
  /** Parameters that take part in one token: everything but the experts that its routers do not choose. */
  activeParameters: number;
  /** Bytes of all tensors as they are stored, headers not included. */
  bytes: number;
}

/**
 * Sizes of the model, or of the checkpoint that `plan` (valid for the model) would become. Multi-token-prediction
 * layers, which no stock runtime of the language model loads, are not part of it.
 */
export function modelSize(model: MoeModel, plan?: Plan): ModelSize {
  const plans = new Map(plan?.layers.map((layer) => [layer.layer, layer]));
  const size = total(denseTensors(model));
  let activeParameters = size.parameters;
  for (const layer of moeLayers(model)) {
    const { router, experts } = layer.feedForward;
    const layerPlan = plans.get(layer.index);
    const kept = layerPlan?.experts.length ?? experts.length;
    const topK = layerPlan?.topK ?? router.topK;
    // A router map needs every row of the original router.
    const rows = layerPlan?.routerMap ? experts.length : kept;
    const routerSize = total(routerTensors(layer.feedForward));
    // Experts of one layer are equal in shape; quantized ones may differ in bits.
    const sizes = (layerPlan?.experts ?? [...experts.keys()]).map((expert) =>
      total(mlpTensors(experts[expert] as MlpSpec)),
    );
    const expertSize = {
      parameters: sizes[0]?.parameters ?? 0,
      bytes: sizes.reduce((sum, { bytes }) => sum + bytes, 0),
    };
    const routerParameters = (routerSize.parameters / experts.length) * rows;
    size.parameters += routerParameters + expertSize.parameters * kept;
    size.bytes += (routerSize.bytes / experts.length) * rows + expertSize.bytes;
    activeParameters += routerParameters + expertSize.parameters * topK;
  }
  return { ...size, activeParameters };
}

/** The tensors of an expert or dense MLP: gate, up and down, then the biases, those that there are. */
export function mlpTensors({ gate, up, down, gateBias, upBias, downBias }: MlpSpec): TensorRef[] {
  return present([gate, up, down, gateBias, upBias, downBias]);
}

/** The tensors with one row per expert: router weight, bias and correction, those that there are. */
export function routerTensors({ router }: MoeSpec): TensorRef[] {
  return present([router.weight, router.bias, router.correction]);
}

/** The tensors of a token mixer. */
export function attentionTensors(attention: AttentionSpec): TensorRef[] {
  if (attention.kind === "other") return [];
  const { query, output, queryNorm } = attention;
  const linears =
    attention.kind === "gqa"
      ? [query, attention.key, attention.value, output]
      : [attention.queryDown, query, attention.kvDown, attention.kvUp, output];
  const norms = [queryNorm, attention.kind === "gqa" ? attention.keyNorm : attention.kvNorm];
  return [
    ...linears.flatMap((linear) => present([linear?.weight, linear?.bias])),
    ...norms.flatMap((norm) => (norm ? normTensors(norm) : [])),
    ...(attention.kind === "gqa" ? present([attention.sinks]) : []),
  ];
}

export function normTensors({ weight, bias }: NormSpec): TensorRef[] {
  return present([weight, bias]);
}

/** Every tensor that no plan touches. */
function denseTensors(model: MoeModel): TensorRef[] {
  const tensors = [model.embedding, ...normTensors(model.finalNorm), ...present([model.headBias])];
  if (!model.tied) tensors.push(model.head);
  for (const { attention, attentionNorm, feedForwardNorm, feedForward } of model.layers) {
    tensors.push(
      ...normTensors(attentionNorm),
      ...normTensors(feedForwardNorm),
      ...attentionTensors(attention),
    );
    if (feedForward.kind === "dense") tensors.push(...mlpTensors(feedForward.mlp));
    else if (feedForward.kind === "moe") {
      if (feedForward.shared) tensors.push(...mlpTensors(feedForward.shared));
      tensors.push(...present([feedForward.sharedGate]));
    }
  }
  return [...tensors, ...(model.undescribed ?? [])];
}

function present(tensors: readonly (TensorRef | undefined)[]): TensorRef[] {
  return tensors.filter((tensor) => tensor !== undefined);
}

function total(tensors: readonly TensorRef[]): { parameters: number; bytes: number } {
  let parameters = 0;
  let bytes = 0;
  for (const tensor of tensors) {
    parameters += elementCount(tensor.shape);
    bytes += storedBytes(tensor);
  }
  return { parameters, bytes };
}
