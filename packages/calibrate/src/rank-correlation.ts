/**
 * Spearman's rank correlation: Pearson's correlation of the ranks, equal values sharing their mean rank. 1 when both
 * order alike, -1 when they order oppositely.
 * @param a one value per item, and `b` as many
 * @returns undefined when one of them has no two different values, so that it orders nothing
 */
export function rankCorrelation(a: ArrayLike<number>, b: ArrayLike<number>): number | undefined {
  const x = ranks(a);
  const y = ranks(b);
  const mean = (x.length - 1) / 2;
  let both = 0;
  let xs = 0;
  let ys = 0;
  for (let i = 0; i < x.length; i++) {
    const dx = (x[i] as number) - mean;
    const dy = (y[i] as number) - mean;
    both += dx * dy;
    xs += dx * dx;
    ys += dy * dy;
  }
  return xs === 0 || ys === 0 ? undefined : both / Math.sqrt(xs * ys);
}

/** Ranks from 0, those of equal values averaged. */
function ranks(values: ArrayLike<number>): Float64Array {
  const order = Array.from(values, (_, i) => i).sort((a, b) => (values[a] as number) - (values[b] as number));
  const out = new Float64Array(order.length);
  for (let from = 0; from < order.length; ) {
    let to = from + 1;
    while (to < order.length && values[order[to] as number] === values[order[from] as number]) to++;
    for (let at = from; at < to; at++) out[order[at] as number] = (from + to - 1) / 2;
    from = to;
  }
  return out;
}
