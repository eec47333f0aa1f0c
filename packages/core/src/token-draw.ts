import { CoppiceError } from "./errors.js";

/**
 * How the next token is drawn from logits. In the order in which they apply, which is that of Hugging Face
 * transformers: repetition penalty, temperature, top-k, top-p, min-p.
 */
export interface DrawRule {
  /** 0, the default, always takes the most likely token. */
  readonly temperature?: number;
  /** Draws from this many most likely tokens. Default: from all. */
  readonly topK?: number;
  /**
   * Draws from the fewest most likely tokens that together have this share of what `topK` leaves (nucleus sampling,
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
}

/** What a run is to draw of each of its R rows, in place of logits. */
export interface TokenDraw {
  readonly rule: DrawRule;
  /** [R], random numbers of [0, 1), which alone decide between the tokens that the rule leaves. */
  readonly uniforms: Float64Array;
  /** Per row, the tokens that `repetitionPenalty` is for; absent: none. */
  readonly seen?: readonly Int32Array[];
}

/** @throws COPPICE_USAGE for a value out of its range */
export function checkDrawRule(rule: DrawRule): void {
  const { temperature = 0, topK = 1, topP = 1, minP = 0, repetitionPenalty = 1 } = rule;
  if (!(temperature >= 0 && temperature <= 100)) throw refused("temperature", temperature, "0 to 100");
  if (!Number.isSafeInteger(topK) || topK < 1) throw refused("topK", topK, "a whole number of at least 1");
  if (!(topP > 0 && topP <= 1)) throw refused("topP", topP, "more than 0, at most 1");
  if (!(minP >= 0 && minP <= 1)) throw refused("minP", minP, "0 to 1");
  if (!(repetitionPenalty > 0 && repetitionPenalty <= 100)) {
    throw refused("repetitionPenalty", repetitionPenalty, "more than 0, at most 100");
  }
}

function refused(name: string, value: unknown, expected: string): CoppiceError {
  return new CoppiceError("COPPICE_USAGE", `${name} is ${JSON.stringify(value)}, expected ${expected}`);
}

const leastPower = -50;

/**
 * The token that a rule and a random number give, in float64: the definition that backends which draw agree with but for
 * rounding. Where top-k or top-p apply, tokens lie by descending probability along [0, 1), ties by id, else by id; the one whose
 * part `uniform` falls in is drawn.
 * @param logits [vocab]; left as they are
 * @param uniform of [0, 1); without effect at temperature 0
 * @param seen tokens that the repetition penalty is for, each once
 * @param weights [vocab], overwritten
 * @throws COPPICE_BACKEND_FAILED when no logit is finite
 */
export function drawToken(
  logits: Float32Array,
  rule: DrawRule,
  uniform: number,
  seen: Iterable<number> = [],
  weights = new Float64Array(logits.length),
): number {
  const { temperature = 0, repetitionPenalty: penalty = 1 } = rule;
  weights.set(logits);
  if (penalty !== 1) {
    for (const token of seen) {
      const value = weights[token] as number;
      weights[token] = value > 0 ? value / penalty : value * penalty;
    }
  }
  const best = mostLikely(weights);
  const max = weights[best] as number;
  if (!Number.isFinite(max)) throw nothingToDraw(max);
  if (temperature === 0) return best;
  let total = 0;
  for (let id = 0; id < weights.length; id++) {
    const power = ((weights[id] as number) - max) / temperature;
    // Below, a whole vocabulary does not add up to what float64 can tell from 0 beside 1. NaN is never drawn either.
    weights[id] = power > leastPower ? Math.exp(power) : 0;
    total += weights[id] as number;
  }
  return drawnFrom(candidates(rule, weights, total), weights, uniform);
}

/** Of a row whose largest logit is no finite number. @param seen what it is */
export function nothingToDraw(seen: number | "NaN or infinite"): CoppiceError {
  return new CoppiceError("COPPICE_BACKEND_FAILED", `the largest logit is ${seen}, expected a finite one`, {
    hint: "the weights probably hold NaN or infinite values; check them with `coppice inspect`",
  });
}

/** The ids to draw from; absent: all. */
function candidates(
  { topK = Number.POSITIVE_INFINITY, topP = 1, minP = 0 }: DrawRule,
  weights: Float64Array,
  total: number,
): number[] | undefined {
  if (topK >= weights.length && topP === 1) return minP > 0 ? idsFrom(weights, minP) : undefined;
  let order = mostLikelyIds(weights, topK, topP * total);
  if (topP < 1) {
    const whole = topK === Number.POSITIVE_INFINITY ? total : weightOf(order, weights);
    order = order.slice(0, countTo(order, weights, topP * whole));
  }
  return minP > 0 ? order.filter((id) => (weights[id] as number) >= minP) : order;
}

/** One of `ids`, with a probability in proportion to its weight. */
function drawnFrom(ids: readonly number[] | undefined, weights: Float64Array, uniform: number): number {
  const count = ids?.length ?? weights.length;
  let total = 0;
  for (let i = 0; i < count; i++) total += weights[ids?.[i] ?? i] as number;
  let left = uniform * total;
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
