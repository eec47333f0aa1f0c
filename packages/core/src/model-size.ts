import { type GatedMlpSpec, type MoeModel, moeLayers } from "./model.js";
import type { Plan } from "./plan.js";
import { elementCount, type TensorRef } from "./tensor.js";

export interface ModelSize {
  /** All parameters; a tied head counts once. */
  parameters: number;
  /** Parameters that take part in one token: everything but the experts that its routers do not choose. */
  activeParameters: number;
  /** Bytes of all tensors at their stored dtypes, headers not included. */
  bytes: number;
}

/** Sizes of the model, or of the checkpoint that `plan` (valid for the model) would become. */
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
    const routerSize = total([router.weight]);
    // Experts of one layer are equal in shape, so sizes follow from counts.
    const expertSize = total(mlpTensors(experts[0] as GatedMlpSpec));
    const routerParameters = (routerSize.parameters / experts.length) * rows;
    size.parameters += routerParameters + expertSize.parameters * kept;
    size.bytes += (routerSize.bytes / experts.length) * rows + expertSize.bytes * kept;
    activeParameters += routerParameters + expertSize.parameters * topK;
  }
  return { ...size, activeParameters };
}

/** The three tensors of an expert or dense MLP. */
export function mlpTensors(mlp: GatedMlpSpec): TensorRef[] {
  return [mlp.gate, mlp.up, mlp.down];
}

/** Every tensor that no plan touches. */
function denseTensors(model: MoeModel): TensorRef[] {
  const tensors = [model.embedding, model.finalNorm.weight];
  if (!model.tied) tensors.push(model.head);
  for (const { attention, attentionNorm, feedForwardNorm, feedForward } of model.layers) {
    tensors.push(attentionNorm.weight, feedForwardNorm.weight);
    for (const linear of [attention.query, attention.key, attention.value, attention.output]) {
      tensors.push(linear.weight);
      if (linear.bias) tensors.push(linear.bias);
    }
    if (attention.queryNorm) tensors.push(attention.queryNorm.weight);
    if (attention.keyNorm) tensors.push(attention.keyNorm.weight);
    if (feedForward.kind === "dense") tensors.push(...mlpTensors(feedForward.mlp));
  }
  return tensors;
}

function total(tensors: readonly TensorRef[]): { parameters: number; bytes: number } {
  let parameters = 0;
  let bytes = 0;
  for (const tensor of tensors) {
    parameters += elementCount(tensor.shape);
    bytes += tensor.end - tensor.begin;
  }
  return { parameters, bytes };
}
