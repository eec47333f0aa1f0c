import { type LayerPlan, type MoeModel, type Plan, throwIfAborted } from "@coppice/core";
import type { MergeCache } from "./merge-cache.js";
import type { Feeds, Runtime } from "./sessions.js";
import type { LayerWeights, MlpWeights, ModelWeights, RouterWeights } from "./weights.js";

/** What an MoE layer computes under a plan. */
export interface PlannedExperts {
  readonly plan: LayerPlan | undefined;
  /** Inputs of the attention graph: `router` [slots, hidden], all rows under a router map, and `routerBias`. */
  readonly router: Feeds;
  /** [slots], the router's correction of the choice. */
  readonly correction: Float32Array | undefined;
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
    const { router, mlps } = weights.layers[index] as LayerWeights & { router: RouterWeights };
    const layerPlan = plans.get(index);
    const kept = layerPlan?.experts ?? mlps.map((_, expert) => expert);
    const rows = (values: Float32Array, size: number) =>
      layerPlan && !layerPlan.routerMap ? keepRows(values, kept, size) : values;
    const weight = rows(router.weight, model.hiddenSize);
    const bias = router.bias && rows(router.bias, 1);
    const merge = layerPlan?.merge;
    planned.set(index, {
      plan: layerPlan,
      router: {
        router: new runtime.Tensor("float32", weight, [weight.length / model.hiddenSize, model.hiddenSize]),
        ...(bias && { routerBias: new runtime.Tensor("float32", bias, [bias.length]) }),
      },
      correction: router.correction && rows(router.correction, 1),
      slots: merge
        ? merge.map((row) => merges.merged(index, row, feedForward.experts, mlps))
        : kept.map((expert) => mlps[expert] as MlpWeights),
    });
  }
  return planned;
}

/** Rows of `size` values, one per expert. */
function keepRows(values: Float32Array, experts: readonly number[], size: number): Float32Array {
  const rows = new Float32Array(experts.length * size);
  for (const [slot, expert] of experts.entries()) {
    rows.set(values.subarray(expert * size, (expert + 1) * size), slot * size);
  }
  return rows;
}
