import type { RouterSpec } from "@coppice/core";
import type { BlockLoss } from "./block-loss.js";

/**
 * How the choices of a token follow when an expert is added or dropped that is not among its chosen:
 *
 * - `stay`: not at all, as each score depends on its own logit alone or only ratios of the chosen scores count
 * - `scale`: all gate weights by one factor, that of the softmax over more or fewer experts
 * - `route`: in no simple way, so that every token is routed again
 */
type Follow = "stay" | "scale" | "route";

function followOf({ order, correction, normalize }: RouterSpec): Follow {
  if (order === "sparsemixer") return "route";
  if (order !== "softmax-topk") return "stay";
  if (correction) return "route";
  if (!normalize) return "scale";
  return normalize.least === undefined && !normalize.epsilon ? "stay" : "route";
}

/** Scores that differ by less may be equal once they are rounded to float32, and then the lower slot wins. */
const margin = 1e-6;

/**
 * A set of experts that changes by one expert at a time, and what each such change makes of the loss. Tokens are routed
 * again only where an expert that comes or goes reaches their `bar`, so that a step over all experts costs about as much
 * as routing every token k times, whatever the number of experts.
 */
export class ChangingSet {
  readonly #block: BlockLoss;
  readonly #follow: Follow;
  readonly #groups: number;
  /** [tokens, E], by which a token's experts are ranked. */
  readonly #ranks: Float32Array;
  /** [tokens, groups]: an expert of the group whose rank is lower changes no choice of the token. */
  readonly #bars: Float32Array;
  /** exp(z - max z), [tokens, E]; only for `scale`, as the next three. */
  readonly #exponentials: Float64Array;
  /** [tokens], sums of them over the set. */
  readonly #sums: Float64Array;
  readonly #cross: Float64Array;
  readonly #own: Float64Array;
  /** [tokens], what each adds to the loss. */
  readonly #losses: Float64Array;
  readonly #affected: Int32Array;
  #experts: readonly number[];
  #squared = 0;

  /** @param experts ascending */
  constructor(block: BlockLoss, experts: readonly number[]) {
    const { router } = block.layer.feedForward;
    const { tokens } = block;
    this.#block = block;
    this.#follow = followOf(router);
    this.#groups = router.groups?.count ?? 1;
    this.#ranks = this.#follow === "route" ? new Float32Array(0) : ranksOf(block);
    this.#bars = new Float32Array(tokens * this.#groups);
    const scales = this.#follow === "scale";
    this.#exponentials = scales ? exponentialsOf(block) : new Float64Array(0);
    this.#sums = new Float64Array(tokens);
    this.#cross = new Float64Array(tokens);
    this.#own = new Float64Array(tokens);
    this.#losses = new Float64Array(tokens);
    this.#affected = new Int32Array(tokens);
    this.#experts = experts;
    this.#refresh();
  }

  /** Ascending. */
  get experts(): readonly number[] {
    return this.#experts;
  }

  /** The loss of the set, `BlockLoss.squared`. */
  get squared(): number {
    return this.#squared;
  }

  /** The set without `expert` if it is in it, else with it; ascending. */
  toggled(expert: number): number[] {
    const without = this.#experts.filter((other) => other !== expert);
    return without.length < this.#experts.length ? without : [...without, expert].sort((a, b) => a - b);
  }

  toggle(expert: number): void {
    this.#experts = this.toggled(expert);
    this.#refresh();
  }

  /** The loss of `toggled(expert)`. */
  squaredToggled(expert: number): number {
    const block = this.#block;
    const changed = this.toggled(expert);
    const drops = changed.length < this.#experts.length;
    const group = Math.floor((expert * this.#groups) / block.experts);
    let squared = 0;
    let affected = 0;
    for (let token = 0; token < block.tokens; token++) {
      const at = token * block.experts + expert;
      if (
        this.#follow === "route" ||
        (this.#ranks[at] as number) >= (this.#bars[token * this.#groups + group] as number) - margin
      ) {
        this.#affected[affected++] = token;
      } else if (this.#follow === "stay") squared += this.#losses[token] as number;
      else squared += this.#scaledLoss(token, this.#exponentials[at] as number, drops);
    }
    if (affected === 0) return squared;
    const choices = block.choices(changed, this.#affected, affected);
    for (let i = 0; i < affected; i++) squared += block.squaredOf(this.#affected[i] as number, choices, i);
    return squared;
  }

  /** (d + r g)ᵀ G (d + r g), where all gate weights g become (1 + r) g. */
  #scaledLoss(token: number, exponential: number, drops: boolean): number {
    const sum = this.#sums[token] as number;
    const rise = drops ? exponential / (sum - exponential) : -exponential / (sum + exponential);
    const [loss, cross, own] = [this.#losses[token], this.#cross[token], this.#own[token]] as [
      number,
      number,
      number,
    ];
    return loss + rise * (2 * cross + rise * own);
  }

  #refresh(): void {
    const block = this.#block;
    const choices = block.choices(this.#experts);
    this.#squared = 0;
    for (let token = 0; token < block.tokens; token++) {
      const loss = block.squaredOf(token, choices, token);
      this.#losses[token] = loss;
      this.#squared += loss;
      if (this.#follow !== "scale") continue;
      const { cross, own } = block.crossOf(token, choices);
      this.#cross[token] = cross;
      this.#own[token] = own;
      let sum = 0;
      for (const expert of this.#experts) sum += this.#exponentials[token * block.experts + expert] as number;
      this.#sums[token] = sum;
    }
    if (this.#follow !== "route") this.#setBars(choices);
  }

  /**
   * The lowest rank of a chosen expert, or in a router with groups the lowest rank that counts for the score of the group
   * if that is less: what is below is neither chosen nor decides between groups.
   */
  #setBars({ experts, factors, topK }: ReturnType<BlockLoss["choices"]>): void {
    const { router } = this.#block.layer.feedForward;
    const count = this.#block.experts;
    const counting = router.groups?.score === "top2" ? 2 : 1;
    const size = count / this.#groups;
    for (let token = 0; token < this.#block.tokens; token++) {
      const ranks = this.#ranks.subarray(token * count, (token + 1) * count);
      // With fewer than the top-k to choose from, every expert is chosen; the best groups may hold fewer, too.
      let bar = topK < router.topK ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
      for (let i = token * topK; i < (token + 1) * topK; i++) {
        const rank = factors[i] === 0 ? Number.NEGATIVE_INFINITY : (ranks[experts[i] as number] as number);
        bar = Math.min(bar, rank);
      }
      for (let group = 0; group < this.#groups; group++) {
        let first = Number.NEGATIVE_INFINITY;
        let second = Number.NEGATIVE_INFINITY;
        for (const expert of router.groups ? this.#experts : []) {
          if (Math.floor(expert / size) !== group) continue;
          const rank = ranks[expert] as number;
          if (rank > first) [first, second] = [rank, first];
          else if (rank > second) second = rank;
        }
        const decisive = counting === 2 ? second : first;
        this.#bars[token * this.#groups + group] = router.groups ? Math.min(bar, decisive) : bar;
      }
    }
  }
}

/** Selection scores, or logits where these rank alike. */
function ranksOf({ layer, logits, experts, correction }: BlockLoss): Float32Array {
  const { order } = layer.feedForward.router;
  return logits.map((z, i) => {
    const score = order === "sigmoid-topk" ? Math.fround(1 / (1 + Math.exp(-z))) : z;
    return score + (correction?.[i % experts] ?? 0);
  });
}

function exponentialsOf({ logits, experts, tokens }: BlockLoss): Float64Array {
  const out = new Float64Array(logits.length);
  for (let token = 0; token < tokens; token++) {
    const row = logits.subarray(token * experts, (token + 1) * experts);
    const most = row.reduce((a, b) => Math.max(a, b));
    for (let i = 0; i < experts; i++) out[token * experts + i] = Math.exp((row[i] as number) - most);
  }
  return out;
}
