/** All ways to choose `count` of the items, each in the order of the items, one after the other. */
export function* combinations<T>(items: readonly T[], count: number, from = 0): Generator<T[]> {
  if (count === 0) {
    yield [];
    return;
  }
  for (let i = from; i + count <= items.length; i++) {
    for (const rest of combinations(items, count - 1, i + 1)) yield [items[i] as T, ...rest];
  }
}
