import type { BlockLoss, Choices } from "./block-loss.js";

/** How the softmax over a set of experts, and with it the loss of a token, changes with the set. */
export class SoftmaxScales {
  readonly #block: BlockLoss;
  /** exp(z - max z), [tokens, E]. */
  readonly #exponentials: Float64Array;
  /** [tokens], their sums over the set. */
  readonly #sums: Float64Array;
  /** [tokens], gᵀ G d and gᵀ G g, g being the gate weights of the set. */
  readonly #cross: Float64Array;
  readonly #own: Float64Array;

  constructor(block: BlockLoss) {
    const { logits, experts, tokens } = block;
    this.#block = block;
    this.#sums = new Float64Array(tokens);
    this.#cross = new Float64Array(tokens);
    this.#own = new Float64Array(tokens);
    this.#exponentials = new Float64Array(logits.length);
    for (let token = 0; token < tokens; token++) {
      const row = logits.subarray(token * experts, (token + 1) * experts);
      const most = row.reduce((a, b) => Math.max(a, b));
      for (let i = 0; i < experts; i++) {
        this.#exponentials[token * experts + i] = Math.exp((row[i] as number) - most);
      }
    }
  }

  update(experts: readonly number[], choices: Choices): void {
    for (let token = 0; token < this.#block.tokens; token++) {
      const { cross, own } = this.#block.crossOf(token, choices);
      this.#cross[token] = cross;
      this.#own[token] = own;
      let sum = 0;
      for (const expert of experts) sum += this.#exponential(token, expert);
      this.#sums[token] = sum;
    }
  }

  /** (d + r g)ᵀ G (d + r g) of a token that keeps its choices, whose gate weights g become (1 + r) g. */
  loss(token: number, expert: number, loses: boolean, before: number): number {
    const rise = (this.#sums[token] as number) / this.#changedSum(token, expert, loses) - 1;
    return before + rise * (2 * (this.#cross[token] as number) + rise * (this.#own[token] as number));
  }

  /** Softmax over all of the changed set in place of that over the chosen. */
  amongAll({ experts, factors, topK }: Choices, tokens: Int32Array, expert: number, loses: boolean): Choices {
    const scaled = factors.slice();
    for (let start = 0; start < scaled.length; start += topK) {
      const token = tokens[start / topK] as number;
      let chosen = 0;
      for (let i = start; i < start + topK; i++) chosen += this.#exponential(token, experts[i] as number);
      const share = chosen / this.#changedSum(token, expert, loses);
      for (let i = start; i < start + topK; i++) scaled[i] = (scaled[i] as number) * share;
    }
    return { experts, factors: scaled, topK };
  }

  #changedSum(token: number, expert: number, loses: boolean): number {
    const exponential = this.#exponential(token, expert);
    return (this.#sums[token] as number) + (loses ? -exponential : exponential);
  }

  #exponential(token: number, expert: number): number {
    return this.#exponentials[token * this.#block.experts + expert] as number;
  }
}
