import { GramSum } from "@coppice/calibrate";
import type { InputSums } from "@coppice/core";

/** Sums over inputs while they are seen. */
export class SumBuilder {
  readonly #sums: { tokens: number; readonly gram: Float64Array; readonly magnitude: Float64Array };
  readonly #gram: GramSum;

  constructor(columns: number) {
    this.#sums = {
      tokens: 0,
      gram: new Float64Array(columns * columns),
      magnitude: new Float64Array(columns),
    };
    this.#gram = new GramSum(this.#sums.gram, columns);
  }

  /** @param rows [count, columns] */
  add(rows: Float32Array, count: number): void {
    const { magnitude } = this.#sums;
    const columns = magnitude.length;
    for (let row = 0, at = 0; row < count; row++) {
      for (let column = 0; column < columns; column++) {
        magnitude[column] = (magnitude[column] as number) + Math.abs(rows[at++] as number);
      }
    }
    this.#gram.add(rows, count);
    this.#sums.tokens += count;
  }

  finish(): InputSums {
    this.#gram.finish();
    return this.#sums;
  }
}

/** Bytes of the sums over inputs of so many columns. */
export function sumBytes(columns: number): number {
  return Float64Array.BYTES_PER_ELEMENT * columns * (columns + 1);
}

/** The sums of the same inputs, each divided by the factors of its channels. */
export function dividedSums({ tokens, gram, magnitude }: InputSums, factors: ArrayLike<number>): InputSums {
  const n = factors.length;
  return {
    tokens,
    gram: gram.map(
      (sum, at) => sum / ((factors[Math.floor(at / n)] as number) * (factors[at % n] as number)),
    ),
    magnitude: magnitude.map((sum, i) => sum / (factors[i] as number)),
  };
}
