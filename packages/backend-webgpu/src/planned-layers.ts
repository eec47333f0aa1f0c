import { type LayerPlan, layerKey, type MoeSpec } from "@coppice/core";
import type { Gpu } from "@coppice/kernels-webgpu";
import type { MoeWeights } from "./model-weights.js";
import { type PlannedExperts, planExperts } from "./planned-experts.js";

/** Of every layer the experts of the latest plan, kept until another one is asked for. */
export class PlannedLayers {
  readonly #gpu: Gpu;
  readonly #planned = new Map<number, { readonly key: string; readonly experts: PlannedExperts }>();

  constructor(gpu: Gpu) {
    this.#gpu = gpu;
  }

  /** Reads from the device where the plan makes experts. */
  async experts(
    layer: number,
    spec: MoeSpec,
    weights: MoeWeights,
    plan: LayerPlan | undefined,
  ): Promise<PlannedExperts> {
    const key = plan ? layerKey(plan) : "";
    const known = this.#planned.get(layer);
    if (known?.key === key) return known.experts;
    known?.experts.dispose();
    this.#planned.delete(layer);
    const experts = await planExperts(this.#gpu, spec, weights, plan);
    this.#planned.set(layer, { key, experts });
    return experts;
  }

  dispose(): void {
    for (const { experts } of this.#planned.values()) experts.dispose();
    this.#planned.clear();
  }
}
