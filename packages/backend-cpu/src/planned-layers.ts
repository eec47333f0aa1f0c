import { type LayerPlan, type MoeModel, type Plan, type RouterSpec, throwIfAborted } from "@coppice/core";
import type { Tensor } from "onnxruntime-node";
import type { MergeCache } from "./merge-cache.js";
import type { Runtime } from "./sessions.js";
import type { LayerWeights, MlpWeights, ModelWeights } from "./weights.js";

/** What an MoE layer computes under a plan. */
export interface PlannedExperts {
  readonly spec: RouterSpec;
  readonly plan: LayerPlan | undefined;
  /** [slots, hidden]; all rows under a router map. */
  readonly router: Tensor;
  /** One per slot. */
  readonly slots: readonly MlpWeights[];
}

/** Experts of layers `from` to `to` under `plan`, by layer; dense layers are absent. Merges what is not in the cache. */
export function planLayers(
  runtime: Runtime,
  model: MoeModel,
  weights: ModelWeights,
  merges: MergeCache,
  range: { readonly from: number; readonly to: number },
  plan: Plan | undefined,
  signal: AbortSignal | undefined,
): Map<number, PlannedExperts> {
  const plans = new Map(plan?.layers.map((layer) => [layer.layer, layer]));
  const planned = new Map<number, PlannedExperts>();
  for (const layer of model.layers.slice(range.from, range.to)) {
    const { feedForward, index } = layer;
    if (feedForward.kind !== "moe") continue;
    throwIfAborted(signal, "merging experts");
    const { router, mlps } = weights.layers[index] as LayerWeights & { router: Float32Array };
    const layerPlan = plans.get(index);
    const kept = layerPlan?.experts ?? mlps.map((_, expert) => expert);
    const rows = layerPlan && !layerPlan.routerMap ? keepRows(router, kept, model.hiddenSize) : router;
    const merge = layerPlan?.merge;
    planned.set(index, {
      spec: feedForward.router,
      plan: layerPlan,
      router: new runtime.Tensor("float32", rows, [rows.length / model.hiddenSize, model.hiddenSize]),
      slots: merge
        ? merge.map((row) => merges.merged(index, row, feedForward.experts, mlps))
        : kept.map((expert) => mlps[expert] as MlpWeights),
    });
  }
  return planned;
}

function keepRows(router: Float32Array, experts: readonly number[], hidden: number): Float32Array {
  const rows = new Float32Array(experts.length * hidden);
  for (const [slot, expert] of experts.entries()) {
    rows.set(router.subarray(expert * hidden, (expert + 1) * hidden), slot * hidden);
  }
  return rows;
}
