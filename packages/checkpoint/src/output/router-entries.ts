import { CoppiceError, type LayerPlan, type RouterSpec, storedRouterRows } from "@coppice/core";
import type { ExpertRows } from "../families/expert-tensors.js";
import { neverChosen } from "./padding.js";

/** What stands in a router's tensors for one slot, in place of the entries of its expert; absent: those stay. */
export type RouterEntry = Partial<Readonly<Record<ExpertRows["role"], Float32Array>>>;

/** The router rows of a plan by the expert that answers to them, rounded to what the tensors hold. */
export function routerEntries(
  { experts, router: rows }: LayerPlan,
  router: RouterSpec,
): ReadonlyMap<number, RouterEntry> | undefined {
  if (!rows) return undefined;
  const { weight, bias, correction } = storedRouterRows(rows, router);
  const hidden = weight.length / experts.length;
  return new Map(
    experts.map((expert, slot) => [
      expert,
      {
        weight: weight.subarray(slot * hidden, (slot + 1) * hidden),
        ...(bias && { bias: bias.subarray(slot, slot + 1) }),
        ...(correction && { correction: correction.subarray(slot, slot + 1) }),
      },
    ]),
  );
}

/**
 * Checks that experts that fill up stay out of reach of those of a plan's router.
 * @throws COPPICE_PLAN_EXPORT
 */
export function checkAboveFilling(
  entries: ReadonlyMap<number, RouterEntry> | undefined,
  layer: number,
): void {
  for (const [expert, entry] of entries ?? []) {
    for (const role of ["bias", "correction"] as const) {
      const value = entry[role]?.[0] ?? 0;
      if (value > neverChosen) continue;
      throw new CoppiceError(
        "COPPICE_PLAN_EXPORT",
        `the plan cannot be written as a checkpoint: layer ${layer} gives expert ${expert} the router ${role} ${value}, ` +
          "so that an expert that fills up its layer could be chosen before it",
        {
          hint: "keep the same number of experts in every layer, or write the runtime layout",
          details: { layer, expert },
        },
      );
    }
  }
}
