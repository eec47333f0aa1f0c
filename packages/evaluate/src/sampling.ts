import { CoppiceError, checkDrawRule, type DrawRule, drawToken, Rng, type TokenDraw } from "@coppice/core";

/** How the tokens of a text are drawn. */
export interface SamplingOptions extends DrawRule {
  /** Default 0. The same seed gives the same tokens. */
  readonly seed?: number;
}

/** @throws COPPICE_USAGE for a value out of its range */
export function checkSampling(options: SamplingOptions): void {
  checkDrawRule(options);
  const { seed = 0 } = options;
  if (!Number.isSafeInteger(seed)) refuse("seed", seed, "a whole number");
}

export function refuse(name: string, value: unknown, expected: string): never {
  throw new CoppiceError("COPPICE_USAGE", `${name} is ${JSON.stringify(value)}, expected ${expected}`);
}

/** Draws the tokens of one text: from logits (`next`), or has them drawn by a runner (`wanted` and then `take`). */
export class Sampler {
  /** True when every token is the most likely one of the logits as they are, so that they need not be copied out. */
  readonly takesMostLikely: boolean;
  readonly rule: DrawRule;
  readonly #rng: Rng;
  readonly #penalises: boolean;
  readonly #seen = new Set<number>();
  /** [vocab], kept from token to token. */
  #weights = new Float64Array(0);

  /**
   * @param prompt tokens before the text
   * @throws COPPICE_USAGE
   */
  constructor(options: SamplingOptions, prompt: Iterable<number>) {
    checkSampling(options);
    const { seed = 0, temperature = 0, topK, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
    this.rule = { temperature, topP, minP, repetitionPenalty, ...(topK !== undefined && { topK }) };
    this.#rng = Rng.fromSeed(seed);
    this.#penalises = repetitionPenalty !== 1;
    this.takesMostLikely = temperature === 0 && !this.#penalises;
    if (this.#penalises) for (const token of prompt) this.#seen.add(token);
  }

  /**
   * The next token.
   * @param logits [vocab]; left as they are
   * @throws COPPICE_BACKEND_FAILED when no logit is finite
   */
  next(logits: Float32Array): number {
    if (this.#weights.length !== logits.length) this.#weights = new Float64Array(logits.length);
    return this.take(drawToken(logits, this.rule, this.#uniform(), this.#seen, this.#weights));
  }

  /** What a runner is to draw the next token with: the same that `next` gives, but for rounding. */
  wanted(): { readonly uniform: number; readonly seen: Int32Array } {
    return { uniform: this.#uniform(), seen: Int32Array.from(this.#seen) };
  }

  /** Takes note of a token that was drawn. */
  take(token: number): number {
    if (this.#penalises) this.#seen.add(token);
    return token;
  }

  #uniform(): number {
    return (this.rule.temperature ?? 0) === 0 ? 0 : this.#rng.uniform();
  }
}

/** What a runner is to draw for texts with the same rule, one row each. */
export function drawOf(samplers: readonly Sampler[]): TokenDraw {
  const wanted = samplers.map((sampler) => sampler.wanted());
  return {
    rule: samplers[0]?.rule ?? {},
    uniforms: Float64Array.from(wanted, ({ uniform }) => uniform),
    seen: wanted.map(({ seen }) => seen),
  };
}
