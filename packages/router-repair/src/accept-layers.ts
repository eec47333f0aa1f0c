import { type LayerPlan, type Plan, type RunEmitter, startProgress, throwIfAborted } from "@coppice/core";
import type { RepairedRouter } from "./repair-router.js";

export interface AcceptOptions {
  /** The plan that was repaired. */
  readonly plan: Plan;
  readonly repaired: RepairedRouter;
  /** How far the model under a plan is from what it should do, such as a KL divergence: smaller is better. */
  readonly measure: (plan: Plan) => Promise<number>;
  /** Gets `progress` in layers. */
  readonly emitter?: RunEmitter;
  readonly signal?: AbortSignal;
}

/** What came of the new rows of one layer. */
export interface CheckedLayer {
  readonly layer: number;
  /** The measure with them, beside those of earlier layers that were accepted. */
  readonly value: number;
  readonly accepted: boolean;
}

export interface AcceptedLayers {
  /** The plan with the new rows of the layers that were accepted. */
  readonly plan: Plan;
  /** Measures of the plan as it was and as it is now. */
  readonly before: number;
  readonly after: number;
  /** Layers with new rows, in the order of the plan. */
  readonly layers: readonly CheckedLayer[];
}

/**
 * Takes over the new router rows of one layer after the other, each only if the model comes nearer to what it should do.
 * The error of a layer's output counts all tokens alike and all directions alike; the model does not, so that rows with a
 * smaller error may serve it worse. Takes one measurement more than layers were repaired.
 * @throws COPPICE_ABORTED; what `measure` throws
 */
export async function acceptLayers(options: AcceptOptions): Promise<AcceptedLayers> {
  const { repaired, measure, emitter, signal } = options;
  const tell = startProgress(emitter, "checking repaired routers", "layers");
  const changed = repaired.plan.layers.filter(({ layer, router }) => {
    const own = options.plan.layers.find((other) => other.layer === layer);
    return router !== undefined && router !== own?.router;
  });
  let plan = options.plan;
  const before = await measure(plan);
  let after = before;
  const layers: CheckedLayer[] = [];
  for (const entry of changed) {
    throwIfAborted(signal, `checking the repaired router of layer ${entry.layer}`);
    const tried = withLayer(plan, entry);
    const value = await measure(tried);
    const accepted = value < after;
    if (accepted) [plan, after] = [tried, value];
    layers.push({ layer: entry.layer, value, accepted });
    tell(layers.length, changed.length);
  }
  return { plan, before, after, layers };
}

function withLayer(plan: Plan, entry: LayerPlan): Plan {
  return { ...plan, layers: plan.layers.map((other) => (other.layer === entry.layer ? entry : other)) };
}
