import type { Rng } from "@coppice/core";
import type { WeightEdit } from "./edited-weights.js";

/**
 * An orthogonal matrix Q = D (H ⊗ C) of any size n = 2^a m, m odd: D random signs, H the Hadamard matrix of size 2^a over
 * its root, C the orthonormal cosine transform (DCT-II) of size m. It spreads every channel over all others and is applied
 * in n (a + m) steps.
 */
export class Rotation {
  readonly #signs: Float64Array;
  readonly #odd: number;
  readonly #cosines: Float64Array;
  readonly #row: Float64Array;
  readonly #part: Float64Array;

  constructor(size: number, rng: Rng) {
    this.#signs = Float64Array.from({ length: size }, () => (rng.bernoulli(0.5) ? 1 : -1));
    let odd = size;
    while (odd % 2 === 0) odd /= 2;
    this.#odd = odd;
    this.#cosines = Float64Array.from({ length: odd * odd }, (_, at) => {
      const [frequency, place] = [at % odd, Math.floor(at / odd)];
      return (
        Math.sqrt((frequency === 0 ? 1 : 2) / odd) * Math.cos((Math.PI * (place + 0.5) * frequency) / odd)
      );
    });
    this.#row = new Float64Array(size);
    this.#part = new Float64Array(odd);
  }

  /** Replaces n values, `stride` apart from `first` on, by their product with Q. */
  apply(values: Float32Array, first: number, stride = 1): void {
    const row = this.#row;
    const size = row.length;
    for (let i = 0; i < size; i++)
      row[i] = (values[first + i * stride] as number) * (this.#signs[i] as number);
    this.#cosineTransforms();
    this.#butterflies();
    const root = Math.sqrt(size / this.#odd);
    for (let i = 0; i < size; i++) values[first + i * stride] = (row[i] as number) / root;
  }

  /** Along the inner axis of [2^a, m]. */
  #cosineTransforms(): void {
    const odd = this.#odd;
    if (odd === 1) return;
    const [row, part] = [this.#row, this.#part];
    for (let start = 0; start < row.length; start += odd) {
      part.fill(0);
      for (let place = 0; place < odd; place++) {
        const value = row[start + place] as number;
        for (let frequency = 0; frequency < odd; frequency++) {
          part[frequency] =
            (part[frequency] as number) + value * (this.#cosines[place * odd + frequency] as number);
        }
      }
      row.set(part, start);
    }
  }

  /** The Hadamard transform along the outer axis. */
  #butterflies(): void {
    const row = this.#row;
    for (let half = this.#odd; half < row.length; half *= 2) {
      for (let start = 0; start < row.length; start += 2 * half) {
        for (let i = start; i < start + half; i++) {
          const [a, b] = [row[i] as number, row[i + half] as number];
          row[i] = a + b;
          row[i + half] = a - b;
        }
      }
    }
  }

  /** For what reads rotated channels: every stretch of n values of a row becomes its product with Q. */
  get ofColumns(): WeightEdit {
    return (values) => {
      for (let first = 0; first < values.length; first += this.#row.length) this.apply(values, first);
    };
  }

  /** For what makes rotated channels, matrices [blocks n, width] and vectors: every column of a block. */
  get ofRows(): WeightEdit {
    return (values, { shape }) => {
      const width = shape.length > 1 ? (shape[1] as number) : 1;
      const block = this.#row.length * width;
      for (let start = 0; start < values.length; start += block) {
        for (let column = 0; column < width; column++) this.apply(values, start + column, width);
      }
    };
  }
}
