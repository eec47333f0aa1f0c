import { type LayerPlan, type RouterSpec, storedRouterRows } from "@coppice/core";
import type { ExpertRows } from "../families/expert-tensors.js";

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
