import { CoppiceError } from "./errors.js";
import type { RouterGroups, RouterSpec } from "./model.js";

/**
 * The groups that a stock router of the kept experts has: undefined when the choice is not limited to groups, or no
 * longer, because no more of them are left than a token may use.
 * @param experts kept experts of a router with groups, all different
 * @throws COPPICE_PLAN_GROUPS when the groups that are left differ in size or are too small
 */
export function groupsAfter(
  router: RouterSpec,
  experts: readonly number[],
  layer: number,
): RouterGroups | undefined {
  const { groups, topK } = router;
  if (!groups) return undefined;
  const members = groupMembers(groups, router, experts);
  const sizes = members.map((group) => group.length);
  const left = sizes.filter((size) => size > 0);
  if (left.length <= groups.keep) return undefined;
  const size = left[0] as number;
  const least = Math.max(groups.score === "top2" ? 2 : 1, Math.ceil(topK / groups.keep));
  if (left.every((other) => other === size) && size >= least) return { ...groups, count: left.length };
  throw new CoppiceError(
    "COPPICE_PLAN_GROUPS",
    `layer ${layer} would have ${sizes.join(", ")} experts in its ${groups.count} groups; its router takes the best ` +
      `${groups.keep} groups, which must be equal in size and have at least ${least} experts each`,
    {
      hint: `keep as many experts of every group, or only experts of ${groups.keep} groups`,
      details: { layer, sizes, keep: groups.keep, least },
    },
  );
}

/** Experts of every group, of those given, ascending. */
export function groupMembers(
  { count }: RouterGroups,
  { weight }: RouterSpec,
  experts: readonly number[],
): number[][] {
  const size = (weight.shape[0] as number) / count;
  const members = Array.from({ length: count }, () => [] as number[]);
  for (const expert of [...experts].sort((a, b) => a - b)) members[Math.floor(expert / size)]?.push(expert);
  return members;
}
