/** What dropping this many experts costs the predictions. */
export interface DropPoint {
  /** The experts that come first in the order. */
  readonly count: number;
  readonly loss: number;
}

/** Most numbers of dropped experts that are measured; those between them are interpolated. */
const pointLimit = 8;

/** Numbers of experts to measure, ascending: `most`, and others at equal distances. */
export function dropCounts(most: number): number[] {
  const points = Math.min(most, pointLimit);
  return Array.from({ length: points }, (_, i) => Math.round(((i + 1) * most) / points));
}

/**
 * Shares out what dropping ever more experts costs, so that the losses of the first n in the order add up to what dropping
 * them together costs, or to more: what is lost between two points is shared out by the experts' own errors, and no expert
 * costs less than those before it, so that none is dropped for a low price that others have paid for. Experts that are in
 * no point cost as much more than the last one as their errors are larger.
 * @param order experts, those to be dropped first in front
 * @param errors of every expert when it alone is dropped
 * @returns a loss per expert
 */
export function dropLosses(
  order: readonly number[],
  errors: Float64Array,
  points: readonly DropPoint[],
): Float64Array {
  const losses = new Float64Array(errors.length);
  let [begin, before, least, rate] = [0, 0, 0, 0];
  for (const { count, loss } of [...points, { count: order.length, loss: Number.NaN }]) {
    const part = order.slice(begin, count);
    const error = part.reduce((sum, expert) => sum + (errors[expert] as number), 0);
    if (!Number.isNaN(loss)) rate = error > 0 ? Math.max(0, loss - before) / error : 0;
    for (const expert of part) {
      least = Math.max(least, rate * (errors[expert] as number));
      losses[expert] = least;
    }
    begin = count;
    if (!Number.isNaN(loss)) before = Math.max(before, loss);
  }
  return losses;
}
