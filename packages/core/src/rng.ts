import { xoroshiro128plusFromState } from "pure-rand/generator/xoroshiro128plus";
import type { JumpableRandomGenerator } from "pure-rand/types/JumpableRandomGenerator";

/** Serialisable state of an `Rng`; survives JSON. */
export interface RngState {
  generator: readonly number[];
  /** The second value of the last Box-Muller pair, when it is still unused. */
  spareNormal: number | null;
}

/**
 * A seeded random generator (xoroshiro128+) whose whole state can be saved and restored, so that a run that
 * was killed continues with the very numbers it would have drawn.
 */
export class Rng {
  #generator: JumpableRandomGenerator;
  #spareNormal: number | null = null;

  private constructor(generator: JumpableRandomGenerator) {
    this.#generator = generator;
  }

  /** @param seed any safe integer; all its bits count */
  static fromSeed(seed: number): Rng {
    return new Rng(xoroshiro128plusFromState(scatteredState(seed)));
  }

  static fromState(state: RngState): Rng {
    const rng = new Rng(xoroshiro128plusFromState(state.generator));
    rng.#spareNormal = state.spareNormal;
    return rng;
  }

  get state(): RngState {
    return { generator: [...this.#generator.getState()], spareNormal: this.#spareNormal };
  }

  /** Uniform in [0, 1) with 53 random bits. */
  uniform(): number {
    const high = this.#generator.next() >>> 5;
    const low = this.#generator.next() >>> 6;
    return (high * 2 ** 26 + low) / 2 ** 53;
  }

  /** Uniform integer in [0, limit); limit must be a positive safe integer. */
  integer(limit: number): number {
    return Math.floor(this.uniform() * limit);
  }

  bernoulli(probability: number): boolean {
    return this.uniform() < probability;
  }

  /** Standard normal value (Box-Muller). */
  normal(): number {
    if (this.#spareNormal !== null) {
      const value = this.#spareNormal;
      this.#spareNormal = null;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.#spareNormal = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** `count` distinct integers of [0, limit), in random order. */
  sample(limit: number, count: number): number[] {
    return this.shuffle(Array.from({ length: limit }, (_, i) => i)).slice(0, count);
  }

  /** Shuffles in place (Fisher-Yates) and returns the array. */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      [items[i], items[j]] = [items[j] as T, items[i] as T];
    }
    return items;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.integer(items.length)] as T;
  }
}

/**
 * Four well-mixed words: the seed plus multiples of the golden ratio, each through the finaliser of MurmurHash3.
 * The seed alone is no state: all seeds would begin with nearly equal numbers (a first uniform value of 0.9999).
 */
function scatteredState(seed: number): number[] {
  const low = seed | 0;
  const high = Math.floor(seed / 2 ** 32) | 0;
  return [1, 2, 3, 4].map((step) => {
    let word = (low + Math.imul(step, 0x9e3779b9)) | 0;
    word = mixWord(word) ^ high;
    return mixWord(word + step);
  });
}

function mixWord(word: number): number {
  let mixed = Math.imul(word ^ (word >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return mixed ^ (mixed >>> 16);
}
