import { RuleCounts } from "./rule-counts.js";
import { relaxUnits } from "./unit-bound.js";
import type { PreparedGroup, PreparedOption, PreparedUnit } from "./unit-groups.js";

/** What the units that are not chosen yet add at least, while one group is worked on. */
export interface Remainder {
  /**
   * Loss + multiplier * bytes of the group's units from `unit` on and of later groups, when `count` of the units before were
   * counted by the first rule, as `RuleCounts` has it.
   */
  value(unit: number, count: number): number;
  /** Bytes, the rules left aside. */
  bytes(unit: number): number;
}

/** One per group, made when it is asked for. */
export function remainders(
  groups: readonly PreparedGroup[],
  multiplier: number,
): (group: number) => Remainder {
  const weigh = ({ loss, bytes }: { loss: number; bytes: number }) => loss + multiplier * bytes;
  const later = suffixSums(groups.map((group) => weigh(relaxUnits([group], { multiplier }))));
  const laterBytes = suffixSums(
    groups.map(({ units }) => units.reduce((sum, unit) => sum + leastBytes(unit), 0)),
  );
  return (g) => {
    const { units, rules } = groups[g] as PreparedGroup;
    const counts = new RuleCounts(rules.slice(0, 1), units.length);
    const values = new Float64Array((units.length + 1) * counts.size);
    for (let count = 0; count < counts.size; count++) {
      values[units.length * counts.size + count] = counts.isMet(count)
        ? (later[g + 1] as number)
        : Number.POSITIVE_INFINITY;
    }
    for (let u = units.length - 1; u >= 0; u--) {
      const { options } = units[u] as PreparedUnit;
      const least = [0, 1].map((counted) =>
        options.reduce(
          (best, option) => ((option.rules & 1) === counted ? Math.min(best, weigh(option)) : best),
          Number.POSITIVE_INFINITY,
        ),
      );
      for (let count = 0; count < counts.size; count++) {
        const follow = (rules: number) => {
          const next = counts.add(count, rules);
          return next === undefined
            ? Number.POSITIVE_INFINITY
            : (values[(u + 1) * counts.size + next] as number);
        };
        values[u * counts.size + count] = Math.min(
          (least[0] as number) + follow(0),
          (least[1] as number) + follow(1),
        );
      }
    }
    const bytes = suffixSums(units.map(leastBytes));
    return {
      value: (unit, count) => values[unit * counts.size + count] as number,
      bytes: (unit) => (bytes[unit] as number) + (laterBytes[g + 1] as number),
    };
  };
}

function leastBytes({ options }: PreparedUnit): number {
  return (options[0] as PreparedOption).bytes;
}

/** Element i is the sum of the values from i on; one more than there are values. */
function suffixSums(values: readonly number[]): Float64Array {
  const sums = new Float64Array(values.length + 1);
  for (let i = values.length - 1; i >= 0; i--) sums[i] = (sums[i + 1] as number) + (values[i] as number);
  return sums;
}
