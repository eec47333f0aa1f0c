import type { BlockLoss, Choices } from "./block-loss.js";

/** Ranks that differ by less may be equal once they are scores in float32, and then the lower expert is chosen. */
const margin = 1e-6;

/**
 * How far down the experts of a set matter to the choices of each token, in routers where an expert that is not chosen
 * cannot change which others are.
 */
export class ChosenBounds {
  readonly #block: BlockLoss;
  /** [tokens, E], by which a token's experts are ranked: selection scores, or logits where these rank alike. */
  readonly #ranks: Float32Array;
  readonly #groups: number;
  /** [tokens, groups], ranks below which an expert of the group matters to nothing. */
  readonly #bars: Float32Array;
  /** [tokens], the first of those that are not chosen; -1 if there is none. */
  readonly #next: Int32Array;

  constructor(block: BlockLoss) {
    const { tokens, logits, experts, correction, layer } = block;
    const { order, groups } = layer.feedForward.router;
    this.#block = block;
    this.#ranks = logits.map((z, i) => {
      const score = order === "sigmoid-topk" ? Math.fround(1 / (1 + Math.exp(-z))) : z;
      return score + (correction?.[i % experts] ?? 0);
    });
    this.#groups = groups?.count ?? 1;
    this.#bars = new Float32Array(tokens * this.#groups);
    this.#next = new Int32Array(tokens);
  }

  /** False when no choice of the token changes as the set loses or gains this expert. */
  reaches(token: number, expert: number): boolean {
    const group = this.#groups === 1 ? 0 : this.#groupOf(expert);
    return this.#rank(token, expert) >= (this.#bars[token * this.#groups + group] as number) - margin;
  }

  /**
   * What a token chooses when the set loses or gains an expert, in a router without groups, of no fewer than top-k.
   * @param chosen what it chooses of the set, top-k experts; is changed
   */
  exchange(token: number, expert: number, loses: boolean, chosen: Int32Array): void {
    if (loses) {
      const at = chosen.indexOf(expert);
      if (at >= 0) chosen[at] = this.#next[token] as number;
      return;
    }
    let last = 0;
    for (let i = 1; i < chosen.length; i++) {
      if (this.#precedes(token, chosen[last] as number, chosen[i] as number)) last = i;
    }
    if (this.#precedes(token, expert, chosen[last] as number)) chosen[last] = expert;
  }

  /** Takes over another set, ascending, and what the tokens choose of it. */
  update(experts: readonly number[], { experts: chosen, factors, topK }: Choices): void {
    const { router } = this.#block.layer.feedForward;
    for (let token = 0; token < this.#block.tokens; token++) {
      const own = chosen.subarray(token * topK, (token + 1) * topK);
      // With fewer than the top-k to choose from, every expert is chosen; the best groups may hold fewer, too.
      let bar = topK < router.topK ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
      for (let i = 0; i < topK; i++) {
        const counts = factors[token * topK + i] !== 0;
        bar = Math.min(bar, counts ? this.#rank(token, own[i] as number) : Number.NEGATIVE_INFINITY);
      }
      this.#bars.fill(bar, token * this.#groups, (token + 1) * this.#groups);
      if (router.groups) this.#lowerBars(token, experts, router.groups.score === "top2");
      let next = -1;
      for (const expert of experts) {
        if (own.includes(expert)) continue;
        if (next < 0 || this.#rank(token, expert) > this.#rank(token, next)) next = expert;
      }
      this.#next[token] = next;
    }
  }

  /** An expert also matters when it is one of those by which its group is compared with others. */
  #lowerBars(token: number, experts: readonly number[], two: boolean): void {
    for (let group = 0; group < this.#groups; group++) {
      let first = Number.NEGATIVE_INFINITY;
      let second = Number.NEGATIVE_INFINITY;
      for (const expert of experts) {
        if (this.#groupOf(expert) !== group) continue;
        const rank = this.#rank(token, expert);
        if (rank > first) {
          second = first;
          first = rank;
        } else if (rank > second) second = rank;
      }
      const at = token * this.#groups + group;
      this.#bars[at] = Math.min(this.#bars[at] as number, two ? second : first);
    }
  }

  /** Ties go to the lower expert. */
  #precedes(token: number, one: number, other: number): boolean {
    const lead = this.#rank(token, one) - this.#rank(token, other);
    return lead > 0 || (lead === 0 && one < other);
  }

  #rank(token: number, expert: number): number {
    return this.#ranks[token * this.#block.experts + expert] as number;
  }

  #groupOf(expert: number): number {
    return Math.floor((expert * this.#groups) / this.#block.experts);
  }
}
