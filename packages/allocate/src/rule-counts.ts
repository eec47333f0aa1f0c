import type { PreparedRule } from "./unit-groups.js";

/** How many of a group's units every rule has counted so far, as one number from 0 to `size - 1`. */
export class RuleCounts {
  readonly size: number;
  readonly #rules: readonly {
    readonly least: number;
    readonly isLimited: boolean;
    /** The largest count that is told apart: above the least it matters only where there is a most. */
    readonly largest: number;
    readonly step: number;
  }[];

  /** @param units of the group */
  constructor(rules: readonly PreparedRule[], units: number) {
    let size = 1;
    this.#rules = rules.map(({ least, most }) => {
      const isLimited = most < units;
      const own = { least, isLimited, largest: isLimited ? most : least, step: size };
      size *= own.largest + 1;
      return own;
    });
    this.size = size;
  }

  /** With one more unit, of an option that these rules count; undefined when one of them forbids it. */
  add(counts: number, rules: number): number | undefined {
    let next = counts;
    for (const [r, { isLimited, largest, step }] of this.#rules.entries()) {
      if (!((rules >> r) & 1)) continue;
      if (this.count(counts, r) < largest) next += step;
      else if (isLimited) return undefined;
    }
    return next;
  }

  isMet(counts: number): boolean {
    return this.#rules.every(({ least }, r) => this.count(counts, r) >= least);
  }

  /** That of one rule; 0 where there is no such rule. */
  count(counts: number, rule: number): number {
    const found = this.#rules[rule];
    return found ? Math.floor(counts / found.step) % (found.largest + 1) : 0;
  }
}
