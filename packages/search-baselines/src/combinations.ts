/** Number of ways to choose `count` of `total`; exact as far as doubles count, Infinity beyond. */
export function binomial(total: number, count: number): number {
  let ways = 1;
  for (let i = 1; i <= Math.min(count, total - count); i++) ways = (ways * (total - i + 1)) / i;
  return Math.round(ways);
}

/** All ways to choose `count` of the numbers below `total`, each ascending, in lexicographic order. */
export function* combinations(total: number, count: number): Generator<number[]> {
  const chosen = Array.from({ length: count }, (_, i) => i);
  for (;;) {
    yield [...chosen];
    let last = count - 1;
    while (last >= 0 && chosen[last] === total - count + last) last--;
    if (last < 0) return;
    const next = (chosen[last] as number) + 1;
    for (let i = last; i < count; i++) chosen[i] = next + i - last;
  }
}
