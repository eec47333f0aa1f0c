import type { UnitSource } from "@coppice/core";
import { assign } from "./assignment.js";
import { compareUnits, distance } from "./compare-units.js";
import type { FeatureSource, UnitFeatures } from "./unit-features.js";

/** The hidden units of a slot whose members were aligned. */
export interface AlignRequest {
  readonly leader: number;
  /** Weight of every expert in the slot, [E]; members are those that do not weigh 0. */
  readonly row: readonly number[];
  readonly features: FeatureSource;
  /** Called after every member that was aligned. */
  readonly onMember: () => Promise<void>;
}

/** Members of a slot besides its leader, if there is anything to align: several that weigh something. */
export function membersToAlign({ leader, row }: Pick<AlignRequest, "leader" | "row">): number[] {
  const members = [...row.keys()].filter((expert) => row[expert] !== 0);
  return members.length > 1 ? members.filter((expert) => expert !== leader) : [];
}

/**
 * Permutes the hidden units of each member to those of the leader and averages them unit by unit: the permutation is the
 * assignment of least cost (`assign`), the cost of a pair the Euclidean distance of their vectors at length 1, by weights
 * and by activations added up (REAM, arXiv 2604.04356; without data the weight matching of Git Re-Basin, arXiv
 * 2209.04836). An expert computes the same whatever the order of its units, so the average of an expert and a permuted
 * copy of it is the expert. Holds the features of two experts and a cost for every pair of their units.
 * @returns the slot's units, or null where no member has to be permuted and `merge` says all
 */
export async function alignUnits(request: AlignRequest): Promise<UnitSource[] | null> {
  const { leader, row, features, onMember } = request;
  const members = membersToAlign(request);
  if (members.length === 0) return null;
  const order = new Map<number, ArrayLike<number>>();
  const target = await features(leader);
  const width = (target[0] as UnitFeatures).norms.length;
  const costs = new Float64Array(width * width);
  for (const member of members) {
    compareUnits(await features(member), target, distance, costs);
    order.set(member, assign(costs, width));
    await onMember();
  }
  if ([...order.values()].every((to) => Array.from(to).every((unit, i) => unit === i))) return null;
  if (row[leader] !== 0) {
    order.set(
      leader,
      Array.from({ length: width }, (_, unit) => unit),
    );
  }
  return [...order]
    .sort(([a], [b]) => a - b)
    .map(([expert, to]) => {
      const weight = row[expert] as number;
      return { expert, to: Array.from(to), rows: weight, columns: weight };
    });
}
