import type { UnitSource } from "@coppice/core";
import type { Segments } from "./dern-segments.js";

/**
 * The hidden units of a retained expert with the segments that joined them, see `dern` for the factors.
 * @param usage [E], tokens that were routed to each expert
 * @returns null when none joined it
 */
export function recombine(
  retained: number,
  { places, magnitudes }: Segments,
  usage: ArrayLike<number>,
): UnitSource[] | null {
  const givers = [...places].filter(([, { expert }]) => expert.includes(retained));
  if (givers.length === 0) return null;
  const joined = givers.map(([expert, place]) => ({
    expert,
    to: Array.from(place.unit, (unit, segment) => (place.expert[segment] === retained ? unit : -1)),
  }));
  const received = new Set(joined.flatMap(({ to }) => to));
  const width = joined[0]?.to.length as number;
  const identity = Array.from({ length: width }, (_, unit) => unit);
  const members = [{ expert: retained, to: identity }, ...joined]
    .sort((a, b) => a.expert - b.expert)
    .map(({ expert, to }) => {
      const tokens = usage[expert] as number;
      const sizes = magnitudes.get(expert) as Float64Array;
      return { expert, to, tokens, outputs: to.map((_, unit) => tokens * (sizes[unit] as number)) };
    });

  /** [width], of each unit of the slot. */
  const totals = { tokens: new Float64Array(width), outputs: new Float64Array(width) };
  for (const { to, tokens, outputs } of members) {
    for (const [unit, target] of to.entries()) {
      if (target < 0) continue;
      totals.tokens[target] = (totals.tokens[target] as number) + tokens;
      totals.outputs[target] = (totals.outputs[target] as number) + (outputs[unit] as number);
    }
  }
  return members.map(({ expert, to, tokens, outputs }) => {
    const rows = to.map((target) => {
      if (target < 0) return 0;
      // A unit that no segment joined is what it was, however little it is used.
      return received.has(target) ? tokens / (totals.tokens[target] as number) : 1;
    });
    const columns = to.map((target, unit) => {
      const total = totals.outputs[target] ?? 0;
      // Units that put out nothing at all are averaged by tokens alone.
      return received.has(target) && target >= 0 && total > 0
        ? (outputs[unit] as number) / total
        : (rows[unit] as number);
    });
    return { expert, to, rows, columns };
  });
}
