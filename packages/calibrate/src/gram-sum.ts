/** Sums ZᵀZ of rows z of float32 values in float64, without allocating. */
export class GramSum {
  readonly #out: Float64Array;
  readonly #size: number;

  /** @param out [size, size], zeros; complete after `finish` */
  constructor(out: Float64Array, size: number) {
    this.#out = out;
    this.#size = size;
  }

  /** @param rows [count, size] */
  add(rows: Float32Array, count: number): void {
    const size = this.#size;
    let row = 0;
    // Four rows at a time: every sum is loaded and stored once for four products.
    for (; row + 4 <= count; row += 4) {
      const a = rows.subarray(row * size, (row + 1) * size);
      const b = rows.subarray((row + 1) * size, (row + 2) * size);
      const c = rows.subarray((row + 2) * size, (row + 3) * size);
      const d = rows.subarray((row + 3) * size, (row + 4) * size);
      this.#addFour(a, b, c, d);
    }
    for (; row < count; row++) this.#addOne(rows.subarray(row * size, (row + 1) * size));
  }

  /** Copies the half above the diagonal, which `add` sums, to the half below it. */
  finish(): void {
    const out = this.#out;
    const size = this.#size;
    for (let i = 0; i < size; i++) {
      for (let j = i + 1; j < size; j++) out[j * size + i] = out[i * size + j] as number;
    }
  }

  #addFour(a: Float32Array, b: Float32Array, c: Float32Array, d: Float32Array): void {
    const out = this.#out;
    const size = this.#size;
    for (let i = 0; i < size; i++) {
      const p = a[i] as number;
      const q = b[i] as number;
      const r = c[i] as number;
      const s = d[i] as number;
      const at = i * size;
      for (let j = i; j < size; j++) {
        out[at + j] =
          (out[at + j] as number) +
          (p * (a[j] as number) + q * (b[j] as number) + r * (c[j] as number) + s * (d[j] as number));
      }
    }
  }

  #addOne(a: Float32Array): void {
    const out = this.#out;
    const size = this.#size;
    for (let i = 0; i < size; i++) {
      const p = a[i] as number;
      const at = i * size;
      for (let j = i; j < size; j++) out[at + j] = (out[at + j] as number) + p * (a[j] as number);
    }
  }
}
