import type { LayerPlan, Plan } from "@coppice/core";
import { dominantExperts } from "./genome.js";

/**
 * The nearest plan that a stock checkpoint can express: every router map is replaced by the router rows of its
 * dominant experts (one per slot, all different); merged weights stay as they are. A plan without router maps comes
 * back unchanged. What the projection costs must be measured: evaluate both plans.
 */
export function projectToStock(plan: Plan): Plan {
  return { ...plan, layers: plan.layers.map(projectLayer) };
}

function projectLayer(plan: LayerPlan): LayerPlan {
  if (!plan.routerMap) return plan;
  const { routerMap, merge, ...rest } = plan;
  const total = (routerMap[0] as readonly number[]).length;
  // Without a merge matrix the weights of a slot follow `experts`, which is about to change.
  const weights =
    merge ?? plan.experts.map((kept) => Array.from({ length: total }, (_, j) => (j === kept ? 1 : 0)));
  return { ...rest, experts: dominantExperts(routerMap), merge: weights };
}
