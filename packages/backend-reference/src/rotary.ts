import type { RotarySpec } from "@coppice/core";

/**
 * Rotates queries or keys by their positions, in place: dimension i of each head pairs with i + dimensions / 2.
 *
 * Frequencies and angles are rounded to float32 as the reference implementations do: at position 100,000 exact
 * angles would differ from those the model was trained with by more than the tolerance of a logit.
 */
export class Rotary {
  readonly #half: number;
  readonly #frequencies: Float32Array;
  /** cos and sin of positions 0 to #known - 1, [position, half]. */
  #cos = new Float32Array(0);
  #sin = new Float32Array(0);
  #known = 0;

  constructor({ theta, dimensions }: RotarySpec) {
    this.#half = dimensions / 2;
    this.#frequencies = Float32Array.from(
      { length: this.#half },
      (_, i) => 1 / Math.fround(theta ** Math.fround((2 * i) / dimensions)),
    );
  }

  /** Prepares positions below `count`. */
  reserve(count: number): void {
    if (count <= this.#known) return;
    const known = Math.max(count, 2 * this.#known);
    const half = this.#half;
    this.#cos = new Float32Array(known * half);
    this.#sin = new Float32Array(known * half);
    for (let position = 0; position < known; position++) {
      for (let i = 0; i < half; i++) {
        const angle = Math.fround(position * (this.#frequencies[i] as number));
        this.#cos[position * half + i] = Math.cos(angle);
        this.#sin[position * half + i] = Math.sin(angle);
      }
    }
    this.#known = known;
  }

  /** Rotates `heads` heads of `headDim` values that start at `at`. */
  apply(x: Float32Array, at: number, heads: number, headDim: number, position: number): void {
    const half = this.#half;
    const table = position * half;
    for (let head = 0; head < heads; head++) {
      const start = at + head * headDim;
      for (let i = 0; i < half; i++) {
        const a = x[start + i] as number;
        const b = x[start + half + i] as number;
        const cos = this.#cos[table + i] as number;
        const sin = this.#sin[table + i] as number;
        x[start + i] = a * cos - b * sin;
        x[start + half + i] = b * cos + a * sin;
      }
    }
  }
}
