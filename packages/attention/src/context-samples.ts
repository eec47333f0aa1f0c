import { type AttentionSample, CoppiceError, type Rng } from "@coppice/core";

/**
 * Texts of wanted lengths, made from samples: one that fits, with others before it as long as they fit, so that the response of
 * the last has far more before it than it needs. Samples are used up in random order before any is used again.
 */
export class ContextSamples {
  readonly #pool: readonly AttentionSample[];
  readonly #separator: Int32Array;
  #next = 0;

  /** @param separator token between samples, such as the one that ends texts */
  constructor(samples: readonly AttentionSample[], rng: Rng, separator: number | undefined) {
    const pool = [...samples];
    for (let i = pool.length - 1; i > 0; i--) {
      const j = rng.integer(i + 1);
      [pool[i], pool[j]] = [pool[j] as AttentionSample, pool[i] as AttentionSample];
    }
    this.#pool = pool;
    this.#separator = Int32Array.from(separator === undefined ? [] : [separator]);
  }

  /** Tokens of the shortest sample: no text can be shorter. */
  get shortest(): number {
    return Math.min(...this.#pool.map(({ tokens }) => tokens.length));
  }

  /**
   * `count` texts of at most `length` tokens, and nearly as many where samples are small.
   * @throws COPPICE_USAGE when every sample is longer
   */
  take(length: number, count: number): AttentionSample[] {
    return Array.from({ length: count }, () => this.#one(length));
  }

  #one(length: number): AttentionSample {
    // A long one first: it is what the length is about.
    const last = this.#fitting(length, length / 2) ?? this.#fitting(length, 0);
    if (!last) {
      throw new CoppiceError(
        "COPPICE_USAGE",
        `no sample fits a context of ${length} tokens; the shortest has ${this.shortest}`,
        { hint: "give longer lengths or shorter samples" },
      );
    }
    const before: Int32Array[] = [];
    let room = length - last.tokens.length;
    for (;;) {
      const more = this.#fitting(room - this.#separator.length, 0);
      if (!more) break;
      before.unshift(more.tokens, this.#separator);
      room -= more.tokens.length + this.#separator.length;
    }
    const tokens = Int32Array.from([...before, last.tokens].flatMap((part) => Array.from(part)));
    const shift = tokens.length - last.tokens.length;
    return { tokens, responseFrom: last.responseFrom === 0 && shift === 0 ? 0 : shift + last.responseFrom };
  }

  /** The next sample of more than `least` and at most `most` tokens. */
  #fitting(most: number, least: number): AttentionSample | undefined {
    for (let i = 0; i < this.#pool.length; i++) {
      const sample = this.#pool[(this.#next + i) % this.#pool.length] as AttentionSample;
      if (sample.tokens.length > most || sample.tokens.length <= least) continue;
      this.#next += i + 1;
      return sample;
    }
    return undefined;
  }
}
