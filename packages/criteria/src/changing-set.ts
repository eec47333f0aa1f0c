import type { RouterSpec } from "@coppice/core";
import type { BlockLoss, Choices } from "./block-loss.js";
import { ChosenBounds } from "./chosen-bounds.js";
import { SoftmaxScales } from "./softmax-scales.js";

/**
 * How the gate weights of a token follow when the set loses or gains an expert that it does not choose:
 *
 * - `stay`: not at all, as each score depends on its own logit alone or only ratios of the chosen scores count
 * - `scale`: all by one factor, that of the softmax over more or fewer experts
 * - `route`: in no simple way; other experts may be chosen
 */
type Follow = "stay" | "scale" | "route";

function followOf({ order, correction, normalize }: RouterSpec): Follow {
  if (order === "sparsemixer") return "route";
  if (order !== "softmax-topk") return "stay";
  if (correction) return "route";
  if (!normalize) return "scale";
  return normalize.least === undefined && !normalize.epsilon ? "stay" : "route";
}

/**
 * A set of experts that changes by one at a time, and what each such change makes of the loss. Tokens are only routed
 * again where the expert that comes or goes reaches their choices, and only among the experts that can be chosen then: to
 * try all experts routes every token about k times, however many experts there are.
 */
export class ChangingSet {
  readonly #block: BlockLoss;
  readonly #follow: Follow;
  /** Absent for `route`. */
  readonly #bounds: ChosenBounds | undefined;
  /** Whether what a token chooses follows from its chosen and the next one. */
  readonly #exchanges: boolean;
  /** Present for `scale`. */
  readonly #scales: SoftmaxScales | undefined;
  /** [tokens], what each adds to the loss. */
  readonly #losses: Float64Array;
  /** Tokens that a change reaches. */
  readonly #reached: Int32Array;
  #experts: readonly number[] = [];
  #choices: Choices;
  #squared = 0;

  /** @param experts ascending */
  constructor(block: BlockLoss, experts: readonly number[]) {
    const { router } = block.layer.feedForward;
    this.#block = block;
    this.#follow = followOf(router);
    this.#bounds = this.#follow === "route" ? undefined : new ChosenBounds(block);
    this.#exchanges = !router.groups && !router.skip;
    this.#scales = this.#follow === "scale" ? new SoftmaxScales(block) : undefined;
    this.#losses = new Float64Array(block.tokens);
    this.#reached = new Int32Array(block.tokens);
    this.#choices = this.#take(experts);
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
    this.#choices = this.#take(this.toggled(expert));
  }

  /** The loss of `toggled(expert)`. */
  squaredToggled(expert: number): number {
    const block = this.#block;
    const changed = this.toggled(expert);
    const loses = changed.length < this.#experts.length;
    let squared = 0;
    let reached = 0;
    for (let token = 0; token < block.tokens; token++) {
      if (!this.#bounds || this.#bounds.reaches(token, expert)) this.#reached[reached++] = token;
      else {
        const loss = this.#losses[token] as number;
        squared += this.#scales ? this.#scales.loss(token, expert, loses, loss) : loss;
      }
    }
    const choices = this.#choicesOf(changed, expert, reached);
    for (let i = 0; i < reached; i++) squared += block.squaredOf(this.#reached[i] as number, choices, i);
    return squared;
  }

  /** What the tokens reached choose of `changed`, the set without `expert` or with it. */
  #choicesOf(changed: readonly number[], expert: number, reached: number): Choices {
    const block = this.#block;
    const { topK } = block.layer.feedForward.router;
    const bounds = this.#bounds;
    if (!bounds || !this.#exchanges || Math.min(changed.length, this.#experts.length) < topK) {
      return block.choices(changed, this.#reached, reached);
    }
    const loses = changed.length < this.#experts.length;
    const chosen = new Int32Array(reached * topK);
    for (let i = 0; i < reached; i++) {
      const token = this.#reached[i] as number;
      const row = chosen.subarray(i * topK, (i + 1) * topK);
      row.set(this.#choices.experts.subarray(token * topK, (token + 1) * topK));
      bounds.exchange(token, expert, loses, row);
    }
    const choices = block.among(this.#reached, reached, chosen);
    return this.#scales ? this.#scales.amongAll(choices, this.#reached, expert, loses) : choices;
  }

  #take(experts: readonly number[]): Choices {
    const block = this.#block;
    const choices = block.choices(experts);
    this.#experts = experts;
    this.#squared = 0;
    for (let token = 0; token < block.tokens; token++) {
      const loss = block.squaredOf(token, choices, token);
      this.#losses[token] = loss;
      this.#squared += loss;
    }
    this.#bounds?.update(experts, choices);
    this.#scales?.update(experts, choices);
    return choices;
  }
}
