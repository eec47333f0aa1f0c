/**
 * Inner products of rows of float32 values, summed in float64.
 * @param rows [count, size]
 * @param out [count, count], overwritten; symmetric
 */
export function rowGram(rows: Float32Array, count: number, out: Float64Array): void {
  const size = rows.length / count;
  let i = 0;
  // Two rows by two: every value that is loaded takes part in two products.
  for (; i + 2 <= count; i += 2) {
    for (let j = i; j < count; j += 2) {
      const paired = j + 1 < count;
      const a = i * size;
      const b = a + size;
      const c = j * size;
      const d = paired ? c + size : c;
      let ac = 0;
      let ad = 0;
      let bc = 0;
      let bd = 0;
      for (let h = 0; h < size; h++) {
        const p = rows[a + h] as number;
        const q = rows[b + h] as number;
        const r = rows[c + h] as number;
        const s = rows[d + h] as number;
        ac += p * r;
        ad += p * s;
        bc += q * r;
        bd += q * s;
      }
      set(out, count, i, j, ac);
      set(out, count, i + 1, j, bc);
      if (!paired) continue;
      set(out, count, i, j + 1, ad);
      set(out, count, i + 1, j + 1, bd);
    }
  }
  if (i < count) {
    let sum = 0;
    for (let h = i * size; h < (i + 1) * size; h++) sum += (rows[h] as number) ** 2;
    set(out, count, i, i, sum);
  }
}

function set(out: Float64Array, count: number, i: number, j: number, value: number): void {
  out[i * count + j] = value;
  out[j * count + i] = value;
}
