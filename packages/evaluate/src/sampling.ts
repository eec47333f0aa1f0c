import { CoppiceError, Rng } from "@coppice/core";

/**
 * How the next token is drawn from logits. In the order in which they apply, which is that of Hugging Face
 * transformers: repetition penalty, temperature, top-k, top-p, min-p.
 */
export interface SamplingOptions {
  /** 0, the default, always takes the most likely token. */
  readonly temperature?: number;
  /** Samples from this many most likely tokens. Default: from all. */
  readonly topK?: number;
  /**
   * Samples from the fewest most likely tokens that together have this share of what `topK` leaves (nucleus sampling,
   * arXiv 1904.09751). Default 1: from all.
   */
  readonly topP?: number;
  /** Leaves out tokens less likely than this share of the most likely one (arXiv 2407.01082). Default 0. */
  readonly minP?: number;
  /**
   * Logits of tokens in the prompt or the text so far are divided by it where positive, else multiplied (CTRL, arXiv
   * 1909.05858, as transformers does it). Default 1: no penalty.
   */
  readonly repetitionPenalty?: number;
  /** Default 0. The same seed gives the same tokens. */
  readonly seed?: number;
}

/** @throws COPPICE_USAGE for a value out of its range */
export function checkSampling(options: SamplingOptions): void {
  const { temperature = 0, topK = 1, topP = 1, minP = 0, repetitionPenalty = 1, seed = 0 } = options;
  if (!(temperature >= 0 && temperature <= 100)) refuse("temperature", temperature, "0 to 100");
  if (!Number.isSafeInteger(topK) || topK < 1) refuse("topK", topK, "a whole number of at least 1");
  if (!(topP > 0 && topP <= 1)) refuse("topP", topP, "more than 0, at most 1");
  if (!(minP >= 0 && minP <= 1)) refuse("minP", minP, "0 to 1");
  if (!(repetitionPenalty > 0 && repetitionPenalty <= 100)) {
    refuse("repetitionPenalty", repetitionPenalty, "more than 0, at most 100");
  }
  if (!Number.isSafeInteger(seed)) refuse("seed", seed, "a whole number");
}

export function refuse(name: string, value: unknown, expected: string): never {
  throw new CoppiceError("COPPICE_USAGE", `${name} is ${JSON.stringify(value)}, expected ${expected}`);
}

const leastPower = -50;

/** Draws the tokens of one text. */
export class Sampler {
  /** True when every token is the most likely one of the logits as they are, so that they need not be copied out. */
  readonly takesMostLikely: boolean;
  readonly #temperature: number;
  readonly #topK: number;
  readonly #topP: number;
  readonly #minP: number;
  readonly #penalty: number;
  readonly #rng: Rng;
  readonly #seen = new Set<number>();
  /** [vocab], kept from token to token. */
  #weights = new Float64Array(0);

  /**
   * @param prompt tokens before the text
   * @throws COPPICE_USAGE
   */
  constructor(options: SamplingOptions, prompt: Iterable<number>) {
    checkSampling(options);
    this.#temperature = options.temperature ?? 0;
    this.#topK = options.topK ?? Number.POSITIVE_INFINITY;
    this.#topP = options.topP ?? 1;
    this.#minP = options.minP ?? 0;
    this.#penalty = options.repetitionPenalty ?? 1;
    this.#rng = Rng.fromSeed(options.seed ?? 0);
    this.takesMostLikely = this.#temperature === 0 && this.#penalty === 1;
    if (this.#penalty !== 1) for (const token of prompt) this.#seen.add(token);
  }

  /**
   * The next token.
   * @param logits [vocab]; left as they are
   * @throws COPPICE_BACKEND_FAILED when no logit is finite
   */
  next(logits: Float32Array): number {
    const token = this.#draw(logits);
    if (this.#penalty !== 1) this.#seen.add(token);
    return token;
  }

  #draw(logits: Float32Array): number {
    if (this.#weights.length !== logits.length) this.#weights = new Float64Array(logits.length);
    const values = this.#weights;
    values.set(logits);
    for (const token of this.#seen) {
      const value = values[token] as number;
      values[token] = value > 0 ? value / this.#penalty : value * this.#penalty;
    }
    const best = mostLikely(values);
    const max = values[best] as number;
    if (!Number.isFinite(max)) {
      throw new CoppiceError("COPPICE_BACKEND_FAILED", `the largest logit is ${max}, expected a finite one`, {
        hint: "the weights probably hold NaN or infinite values; check them with `coppice inspect`",
      });
    }
    if (this.#temperature === 0) return best;
    let total = 0;
    for (let id = 0; id < values.length; id++) {
      const power = ((values[id] as number) - max) / this.#temperature;
      // Below, a whole vocabulary does not add up to what float64 can tell from 0 beside 1. NaN is never drawn either.
      values[id] = power > leastPower ? Math.exp(power) : 0;
      total += values[id] as number;
    }
    return this.#pick(this.#candidates(values, total), values);
  }

  /** The ids to draw from; absent: all. */
  #candidates(weights: Float64Array, total: number): number[] | undefined {
    const least = this.#minP;
    if (this.#topK >= weights.length && this.#topP === 1) {
      return least > 0 ? idsFrom(weights, least) : undefined;
    }
    let order = mostLikelyIds(weights, this.#topK, this.#topP * total);
    if (this.#topP < 1) {
      const whole = this.#topK === Number.POSITIVE_INFINITY ? total : weightOf(order, weights);
      order = order.slice(0, countTo(order, weights, this.#topP * whole));
    }
    return least > 0 ? order.filter((id) => (weights[id] as number) >= least) : order;
  }

  /** Draws one of `ids` with a probability in proportion to its weight. */
  #pick(ids: readonly number[] | undefined, weights: Float64Array): number {
    const count = ids?.length ?? weights.length;
    let total = 0;
    for (let i = 0; i < count; i++) total += weights[ids?.[i] ?? i] as number;
    let left = this.#rng.uniform() * total;
    let last = ids?.[0] ?? 0;
    for (let i = 0; i < count; i++) {
      const id = ids?.[i] ?? i;
      const weight = weights[id] as number;
      if (weight === 0) continue;
      last = id;
      left -= weight;
      if (left < 0) break;
    }
    return last;
  }
}

/** Index of the largest value; ties go to the lower one, and NaN is never it unless all are. */
export function mostLikely(values: ArrayLike<number>): number {
  let best = 0;
  let max = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < values.length; id++) {
    const value = values[id] as number;
    if (value > max) {
      max = value;
      best = id;
    }
  }
  return best;
}

/**
 * The most likely ids, most likely first, ties by id: `topK` of them, or (when that is infinite) at least as many as weigh
 * `wanted` together. Weights are relative to the largest, which is 1. Few tokens carry nearly all of the weight, so
 * those above a bound are collected and sorted, with lower bounds until they are enough, instead of a whole vocabulary.
 */
function mostLikelyIds(weights: Float64Array, topK: number, wanted: number): number[] {
  for (const bound of [2 ** -6, 2 ** -14, 2 ** -30, 0]) {
    const ids = idsFrom(weights, bound);
    const enough = topK === Number.POSITIVE_INFINITY ? weightOf(ids, weights) >= wanted : ids.length >= topK;
    if (!enough && bound > 0) continue;
    ids.sort((a, b) => (weights[b] as number) - (weights[a] as number) || a - b);
    return ids.slice(0, Math.min(topK, ids.length));
  }
  return [];
}

function idsFrom(weights: Float64Array, bound: number): number[] {
  const ids: number[] = [];
  for (let id = 0; id < weights.length; id++) if ((weights[id] as number) >= bound) ids.push(id);
  return ids;
}

function weightOf(ids: readonly number[], weights: Float64Array): number {
  return ids.reduce((sum, id) => sum + (weights[id] as number), 0);
}

/** How many of the first ids weigh at least `wanted` together; all where rounding keeps them below. */
function countTo(ids: readonly number[], weights: Float64Array, wanted: number): number {
  let sum = 0;
  let count = 0;
  while (count < ids.length && sum < wanted) sum += weights[ids[count++] as number] as number;
  return Math.max(1, count);
}
