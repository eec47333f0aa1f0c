import type { RouterSpec } from "./model.js";
import type { LayerPlan } from "./plan.js";
import { type RoutingOptions, routeTokens } from "./routing.js";

/**
 * The gate weight of every slot, as if it were chosen: what scales the inputs of all experts (`Tap.every`) where gate
 * weights scale inputs. Exact for routers that do not divide gate weights, as those that scale inputs do not; others
 * divide by what all slots together would have.
 * @param logits as in `routeTokens`
 * @returns [tokens, slots], in the order of the slots
 */
export function gatesOfAll(
  logits: Float32Array,
  tokens: number,
  router: RouterSpec,
  { plan, correction }: Pick<RoutingOptions, "plan" | "correction"> = {},
): Float32Array {
  const count = plan?.routerMap?.length ?? logits.length / tokens;
  const { groups: _, skip: __, ...ungrouped } = router;
  const all = { ...ungrouped, topK: count };
  const { slots, gates } = routeTokens(logits, tokens, all, { plan: plan && choosingAll(plan), correction });
  const ordered = new Float32Array(gates.length);
  for (let token = 0; token < tokens; token++) {
    for (let i = token * count; i < (token + 1) * count; i++) {
      ordered[token * count + (slots[i] as number)] = gates[i] as number;
    }
  }
  return ordered;
}

function choosingAll({ skip: _, topK: __, ...plan }: LayerPlan): LayerPlan {
  return plan;
}
