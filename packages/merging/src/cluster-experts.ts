import { groupMembers, type MoeLayer, selectExperts } from "@coppice/core";
import { cluster, type Linkage } from "./clusters.js";
import type { ExpertGroup } from "./group-plan.js";

export interface ClusterOptions {
  readonly keep: number;
  /** [E][E] */
  readonly distances: readonly (readonly number[])[];
  readonly linkage: Linkage;
  /** [E]: how much each expert is used. */
  readonly usage: ArrayLike<number>;
  /** The member of a cluster that leads it. */
  readonly leader: (members: readonly number[]) => number;
}

/**
 * Clusters of the experts of a layer (`cluster`). Where its router has groups, clusters stay within them, as many in
 * each as `selectExperts` leaves of the most used experts; experts of groups of which none is left join the cluster
 * whose leader is nearest.
 * @throws COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS
 */
export function clusterExperts(
  { feedForward, index }: MoeLayer,
  { keep, distances, linkage, usage, leader }: ClusterOptions,
): ExpertGroup[] {
  const left = selectExperts(feedForward, usage, keep, index);
  const { router, experts } = feedForward;
  const byGroup = (chosen: readonly number[]) =>
    router.groups ? groupMembers(router.groups, router, chosen) : [chosen];
  const counts = byGroup(left).map(({ length }) => length);
  const pools = byGroup(experts.map((_, expert) => expert));
  const clusters = pools.flatMap((pool, i) => {
    const count = counts[i] as number;
    if (count === 0) return [];
    const within = pool.map((a) => pool.map((b) => distances[a]?.[b] as number));
    return cluster(within, count, linkage).map((items) => {
      const members = items.map((item) => pool[item] as number);
      return { leader: leader(members), members };
    });
  });
  const homeless = pools.filter((_, i) => counts[i] === 0).flat();
  const leaders = clusters.map((found) => found.leader);
  const joining = homeless.map((expert) => nearest(expert, leaders, distances));
  return clusters.map(({ leader, members }) => ({
    leader,
    members: [...members, ...homeless.filter((_, i) => joining[i] === leader)].sort((a, b) => a - b),
  }));
}

/** The first of `others` at the least distance from `expert`. */
export function nearest(
  expert: number,
  others: readonly number[],
  distances: readonly (readonly number[])[],
): number {
  const to = (other: number) => distances[expert]?.[other] as number;
  return others.reduce((best, other) => (to(other) < to(best) ? other : best));
}

/** The most used member; ties go to the lower one. */
export function mostUsed(usage: ArrayLike<number>): (members: readonly number[]) => number {
  return (members) =>
    members.reduce((best, expert) => ((usage[expert] as number) > (usage[best] as number) ? expert : best));
}
