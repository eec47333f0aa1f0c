import { combinations } from "./combinations.js";
import { CoppiceError } from "./errors.js";
import type { MoeSpec, RouterGroups, RouterSpec } from "./model.js";
import { groupMembers, groupsAfter } from "./router-groups.js";

/** @throws COPPICE_PLAN_KEEP with both numbers when `keep` experts cannot serve the layer. */
export function checkKeep(keep: number, experts: number, topK: number, layer: number): void {
  const details = { keep, experts, topK, layer };
  if (!Number.isSafeInteger(keep) || keep < 1 || keep > experts) {
    throw new CoppiceError(
      "COPPICE_PLAN_KEEP",
      `keep=${keep} is not possible in layer ${layer}, which has ${experts} experts; give 1 to ${experts}`,
      { details },
    );
  }
  if (keep < topK) {
    throw new CoppiceError(
      "COPPICE_PLAN_KEEP",
      `keep=${keep} leaves fewer experts than top-k=${topK} in layer ${layer}`,
      { details, hint: `keep at least ${topK} experts, or lower top-k as well` },
    );
  }
}

/**
 * The `keep` experts of a layer with the highest sum of scores that its router can work with, ascending: without
 * groups simply the highest; with groups as many of every group, of as many groups as possible, else the best of as many
 * groups as a token may use. Scores do not decide how many groups are left, because a stock config states one number of
 * groups for all layers. Ties go to the lower expert.
 * @param spec of the layer; `withTopK` gives that of a plan with another top-k
 * @param scores one per expert
 * @throws COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS when no choice of `keep` experts fits the groups
 */
export function selectExperts(
  spec: MoeSpec,
  scores: ArrayLike<number>,
  keep: number,
  layer: number,
): number[] {
  const found = findExperts(spec, scores, keep, layer);
  if (found) return found;
  const { groups } = spec.router as { groups: RouterGroups };
  const experts = spec.experts.length;
  const fitting = (count: number) =>
    count >= spec.router.topK && findExperts(spec, scores, count, layer) !== undefined;
  const below = Array.from({ length: keep }, (_, i) => keep - 1 - i).find(fitting);
  // All experts always fit.
  const above = Array.from({ length: experts - keep }, (_, i) => keep + 1 + i).find(fitting);
  const near = [below, above].filter((count) => count !== undefined);
  throw new CoppiceError(
    "COPPICE_PLAN_GROUPS",
    `no ${keep} of the ${experts} experts of layer ${layer} fit its ${groups.count} groups, of which the router takes ${groups.keep}`,
    { hint: `${near.join(" or ")} fit`, details: { layer, keep, groups: groups.count } },
  );
}

/**
 * As `selectExperts`; undefined when no choice of `keep` experts fits the groups.
 * @throws COPPICE_PLAN_KEEP
 */
export function findExperts(
  spec: MoeSpec,
  scores: ArrayLike<number>,
  keep: number,
  layer: number,
): number[] | undefined {
  const { router } = spec;
  const all = spec.experts.map((_, expert) => expert);
  checkKeep(keep, all.length, router.topK, layer);
  if (!router.groups) return highest(scores, keep);
  const { groups } = router;
  const sum = (experts: readonly number[]) => experts.reduce((total, e) => total + (scores[e] as number), 0);
  const ranked = groupMembers(groups, router, all).map((members) =>
    members.sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b),
  );
  for (let count = groups.count; count > groups.keep; count--) {
    const each = keep / count;
    const tops = ranked.map((members) => members.slice(0, each));
    if (!Number.isInteger(each) || tops.some(({ length }) => length < each)) continue;
    tops.sort((a, b) => sum(b) - sum(a));
    const experts = tops.slice(0, count).flat();
    if (fits(router, experts, layer)) return experts.sort((a, b) => a - b);
  }
  let best: number[] | undefined;
  // Routers have at most some 16 groups and take up to 8 of them.
  for (const chosen of combinations(ranked, groups.keep)) {
    const members = chosen.flat();
    if (members.length < keep) continue;
    members.sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
    const experts = members.slice(0, keep);
    if (!best || sum(experts) > sum(best)) best = experts;
  }
  return best?.sort((a, b) => a - b);
}

/**
 * The experts nearest to `experts` that the router of the layer can work with, ascending: as many, and as many of
 * them as possible, in as many groups as `selectExperts` leaves. Without groups they are `experts` themselves.
 * @throws COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS
 */
export function repairExperts(spec: MoeSpec, experts: readonly number[], layer: number): number[] {
  const sorted = [...experts].sort((a, b) => a - b);
  const { router } = spec;
  if (!router.groups) return sorted;
  const usual = groupsAfter(
    router,
    selectExperts(spec, new Float64Array(spec.experts.length), sorted.length, layer),
    layer,
  );
  if (fits(router, sorted, layer) && groupsAfter(router, sorted, layer)?.count === usual?.count)
    return sorted;
  const kept = new Set(experts);
  const scores = spec.experts.map((_, expert) => (kept.has(expert) ? 1 : 0));
  return selectExperts(spec, scores, experts.length, layer);
}

/** Indices of the `count` largest values, ascending; ties go to the lower index. */
export function highest(values: ArrayLike<number>, count: number): number[] {
  const order = Array.from(values, (_, i) => i);
  order.sort((a, b) => (values[b] as number) - (values[a] as number) || a - b);
  return order.slice(0, count).sort((a, b) => a - b);
}

function fits(router: RouterSpec, experts: readonly number[], layer: number): boolean {
  try {
    groupsAfter(router, experts, layer);
    return true;
  } catch {
    return false;
  }
}
