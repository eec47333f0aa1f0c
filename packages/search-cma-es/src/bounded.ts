/**
 * A smooth map from all numbers onto [-bound, bound]: the identity but near the bounds, quadratic there, periodic beyond
 * them. So a search without bounds never meets a kink or a plateau (the transformation that Hansen's reference
 * implementation, pycma, uses for bounds).
 */
export function bounded(value: number, bound: number): number {
  const margin = quadraticMargin(bound);
  if (Math.abs(value) <= bound - margin) return value;
  const reach = bound + margin;
  // Mirrored at ±reach, again and again.
  const phase = (((value + reach) % (4 * reach)) + 4 * reach) % (4 * reach);
  const folded = phase <= 2 * reach ? phase - reach : 3 * reach - phase;
  const size = Math.abs(folded);
  if (size <= bound - margin) return folded;
  return Math.sign(folded) * (bound - (reach - size) ** 2 / (4 * margin));
}

/** A value that `bounded` maps to `value`, which lies within the bound. */
export function unbounded(value: number, bound: number): number {
  const margin = quadraticMargin(bound);
  const size = Math.abs(value);
  if (size <= bound - margin) return value;
  return Math.sign(value) * (bound + margin - Math.sqrt(4 * margin * (bound - size)));
}

/** Half the width of the stretch in which the map is quadratic. */
function quadraticMargin(bound: number): number {
  return Math.min(bound, (1 + bound) / 20);
}
