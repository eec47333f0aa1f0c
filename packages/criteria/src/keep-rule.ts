import { combinations, groupsAfter, type MoeLayer, selectExperts } from "@coppice/core";

/**
 * The sets of `keep` experts that the router of a layer can be left with, as `selectExperts` has them: any without groups;
 * with groups as many of every group that is left, or any of as many groups as a token may use.
 */
export class KeepRule {
  readonly keep: number;
  /** Experts of every group of the layer; groups are consecutive experts. */
  readonly #size: number;
  readonly #count: number;
  /** Groups that are left, at most; exactly so many where `#each` is set. */
  readonly #groups: number;
  /** Experts that each of them is left with; undefined where that is free. */
  readonly #each: number | undefined;

  /** @throws COPPICE_PLAN_KEEP, COPPICE_PLAN_GROUPS when no set of `keep` experts is possible */
  constructor({ feedForward, index }: MoeLayer, keep: number) {
    const { experts, router } = feedForward;
    const any = selectExperts(feedForward, new Float64Array(experts.length), keep, index);
    const left = groupsAfter(router, any, index);
    const groups = router.groups ?? { count: 1, keep: 1 };
    this.keep = keep;
    this.#count = groups.count;
    this.#size = experts.length / groups.count;
    this.#groups = left?.count ?? groups.keep;
    this.#each = left && keep / left.count;
  }

  /** All sets, each ascending. */
  sets(): Generator<number[]> {
    return this.#setsFrom(0, this.keep, this.#groups);
  }

  *#setsFrom(group: number, left: number, groups: number): Generator<number[]> {
    if (left === 0) {
      yield [];
      return;
    }
    const members = Array.from({ length: this.#size }, (_, i) => group * this.#size + i);
    const most = this.#each ?? this.#size;
    for (let taken = Math.min(most, left); taken >= 0; taken--) {
      if (this.#each !== undefined && taken !== 0 && taken !== this.#each) continue;
      const others = groups - (taken > 0 ? 1 : 0);
      // Those that are still wanted must fit in the groups behind this one.
      if (left - taken > Math.min(others, this.#count - group - 1) * most) continue;
      for (const rest of this.#setsFrom(group + 1, left - taken, others)) {
        for (const chosen of combinations(members, taken)) yield [...chosen, ...rest];
      }
    }
  }

  /** Whether dropping more experts can lead from this set to one of `sets()`; it has at least `keep`. */
  leadsDown(experts: Iterable<number>): boolean {
    const sizes = this.#sizes(experts);
    const each = this.#each;
    if (each !== undefined) return sizes.filter((size) => size >= each).length >= this.#groups;
    const largest = sizes.sort((a, b) => b - a).slice(0, this.#groups);
    return largest.reduce((sum, size) => sum + size) >= this.keep;
  }

  /** Whether adding more experts can lead from this set to one of `sets()`; it has at most `keep`. */
  leadsUp(experts: Iterable<number>): boolean {
    const sizes = this.#sizes(experts).filter((size) => size > 0);
    return sizes.length <= this.#groups && sizes.every((size) => size <= (this.#each ?? this.#size));
  }

  #sizes(experts: Iterable<number>): number[] {
    const sizes = Array<number>(this.#count).fill(0);
    for (const expert of experts) {
      const group = Math.floor(expert / this.#size);
      sizes[group] = (sizes[group] as number) + 1;
    }
    return sizes;
  }
}
