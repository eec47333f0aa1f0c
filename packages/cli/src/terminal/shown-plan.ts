import type { Plan } from "@coppice/core";

/**
 * A plan as a field of what `--json` prints: fitted projections make it megabytes of text, more than programs expect to read of a
 * command, so that it is left out then and the plan file alone has it.
 */
export function shownPlan(plan: Plan): { readonly plan?: Plan } {
  return plan.layers.some(({ down }) => down !== undefined) ? {} : { plan };
}
