/** Softmax of the first `count` values, in place. */
export function softmax(values: Float64Array, count = values.length): void {
  let max = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < count; i++) max = Math.max(max, values[i] as number);
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const value = Math.exp((values[i] as number) - max);
    values[i] = value;
    sum += value;
  }
  for (let i = 0; i < count; i++) values[i] = (values[i] as number) / sum;
}

/** Indices by value, the largest first; ties go to the lower index. */
export function descending(values: Float64Array): Int32Array {
  return Int32Array.from(values.keys()).sort(
    (a, b) => (values[b] as number) - (values[a] as number) || a - b,
  );
}

/**
 * The first of the indices in `order` whose values together, and with what is covered already, come to `wanted`: the fewest
 * when `order` is descending.
 */
export function covering(values: Float64Array, order: Int32Array, wanted: number, covered = 0): Int32Array {
  let sum = covered;
  let count = 0;
  while (count < order.length && sum < wanted) sum += values[order[count++] as number] as number;
  return order.subarray(0, count);
}

/** Product of two stretches of `size` values. */
export function dot(a: Float32Array, at: number, b: Float32Array, bt: number, size: number): number {
  let sum = 0;
  for (let d = 0; d < size; d++) sum += (a[at + d] as number) * (b[bt + d] as number);
  return sum;
}
