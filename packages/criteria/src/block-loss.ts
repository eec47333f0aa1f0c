import { type LayerSample, type MoeLayer, type Routing, routeTokens, skipped, withTopK } from "@coppice/core";

/** What a sample must show of a layer. */
export type SampledLayer = Required<Pick<LayerSample, "logits" | "grams">>;

/** What tokens choose of a set of experts. */
export interface Choices {
  /** [tokens, k], experts as the layer numbers them; -1 where the router skips a choice. */
  readonly experts: Int32Array;
  /** [tokens, k], what multiplies their outputs: the gate weight, or 1 where gate weights scale inputs; 0 if skipped. */
  readonly factors: Float32Array;
  readonly topK: number;
}

/**
 * What it does to the output of an MoE block that it keeps a set of experts, on a sample of tokens:
 * `Σ_t ‖y_t - y'_t‖₂²`, with y the block's output and y' that of the kept experts as `routeTokens` routes among them. With
 * d_t[j] by how much the factor of expert j's output changes, it is `Σ_t d_tᵀ G_t d_t`, G_t[i, j] = ⟨f_i(x_t), f_j(x_t)⟩: no
 * expert runs again. Of no experts it is what all outputs amount to.
 */
export class BlockLoss {
  /** With the top-k that kept experts are chosen with. */
  readonly layer: MoeLayer;
  readonly tokens: number;
  /** Experts of the layer, E. */
  readonly experts: number;
  /** Router logits, [tokens, E]. */
  readonly logits: Float32Array;
  /** The router's correction, [E]. */
  readonly correction: Float32Array | undefined;
  readonly #grams: Float32Array;
  readonly #full: Choices;
  /** Change of every factor of one token; zeros between calls. */
  readonly #change: Float64Array;
  /** Experts whose factors change, of one token. */
  readonly #changed: Int32Array;
  #logitBuffer = new Float32Array(0);

  /** @param topK of the kept experts; those of the whole block are chosen with the router's own */
  constructor(
    layer: MoeLayer,
    { logits, grams }: SampledLayer,
    correction: Float32Array | undefined,
    topK?: number,
  ) {
    const { experts, router } = layer.feedForward;
    this.layer = layer;
    this.experts = experts.length;
    this.tokens = logits.length / experts.length;
    this.logits = logits;
    this.correction = correction;
    this.#grams = grams;
    this.#change = new Float64Array(experts.length);
    this.#changed = new Int32Array(router.topK + (topK ?? router.topK));
    this.#full = this.choices(Array.from(experts.keys()));
    this.layer = withTopK(layer, topK);
  }

  /**
   * What tokens choose of `kept`.
   * @param kept ascending
   * @param tokens of the sample, default all
   * @param count how many of `tokens` count
   */
  choices(kept: readonly number[], tokens?: Int32Array, count = tokens?.length ?? this.tokens): Choices {
    const { router } = this.layer.feedForward;
    const size = kept.length;
    if (size === 0) return none;
    const gathered = this.#buffer(count * size);
    for (let i = 0, at = 0; i < count; i++) {
      const row = (tokens ? (tokens[i] as number) : i) * this.experts;
      for (let slot = 0; slot < size; slot++)
        gathered[at++] = this.logits[row + (kept[slot] as number)] as number;
    }
    const plan = { layer: this.layer.index, experts: kept };
    const correction =
      this.correction && Float32Array.from(kept, (expert) => this.correction?.[expert] as number);
    return inExperts(routeTokens(gathered, count, router, { plan, correction }), kept, router.scalesInput);
  }

  /**
   * What tokens make of given experts, when these are all that there are.
   * @param tokens of the sample
   * @param experts [count, top-k]
   */
  among(tokens: Int32Array, count: number, experts: Int32Array): Choices {
    const { correction: _, groups: __, ...router } = this.layer.feedForward.router;
    const { topK } = router;
    const gathered = this.#buffer(count * topK);
    for (let at = 0; at < gathered.length; at++) {
      const token = tokens[Math.floor(at / topK)] as number;
      gathered[at] = this.logits[token * this.experts + (experts[at] as number)] as number;
    }
    const { slots, gates } = routeTokens(gathered, count, router);
    const ordered = slots.map((slot, at) => experts[at - (at % topK) + slot] as number);
    return {
      experts: ordered,
      factors: router.scalesInput ? new Float32Array(gates.length).fill(1) : gates,
      topK,
    };
  }

  #buffer(length: number): Float32Array {
    if (this.#logitBuffer.length < length) this.#logitBuffer = new Float32Array(length);
    return this.#logitBuffer.subarray(0, length);
  }

  /** `Σ_t d_tᵀ G_t d_t` of keeping these experts, ascending. */
  squared(kept: readonly number[]): number {
    const choices = this.choices(kept);
    let sum = 0;
    for (let token = 0; token < this.tokens; token++) sum += this.squaredOf(token, choices, token);
    return sum;
  }

  /** `dᵀ G d` of a token of the sample whose choices among the kept experts are those at `at` of `choices`. */
  squaredOf(token: number, choices: Choices, at: number): number {
    const count = this.#setChange(token, choices, at);
    const [changed, change] = [this.#changed, this.#change];
    const start = token * this.experts * this.experts;
    let sum = 0;
    for (let a = 0; a < count; a++) {
      const expert = changed[a] as number;
      const d = change[expert] as number;
      if (d === 0) continue;
      const row = start + expert * this.experts;
      let half = (d * (this.#grams[row + expert] as number)) / 2;
      for (let b = 0; b < a; b++) {
        const other = changed[b] as number;
        half += (change[other] as number) * (this.#grams[row + other] as number);
      }
      sum += 2 * d * half;
    }
    for (let a = 0; a < count; a++) change[changed[a] as number] = 0;
    return sum;
  }

  /** `gᵀ G d` and `gᵀ G g`, g being the factors of the kept experts: what a common change of these depends on. */
  crossOf(token: number, choices: Choices): { readonly cross: number; readonly own: number } {
    const { experts, factors, topK } = choices;
    const count = this.#setChange(token, choices, token);
    const start = token * this.experts * this.experts;
    let cross = 0;
    let own = 0;
    for (let i = token * topK; i < (token + 1) * topK; i++) {
      if (factors[i] === 0) continue;
      const row = start + (experts[i] as number) * this.experts;
      let ofChange = 0;
      for (let a = 0; a < count; a++) {
        const other = this.#changed[a] as number;
        ofChange += (this.#change[other] as number) * (this.#grams[row + other] as number);
      }
      let ofChosen = 0;
      for (let j = token * topK; j < (token + 1) * topK; j++) {
        if (factors[j] === 0) continue;
        ofChosen += (factors[j] as number) * (this.#grams[row + (experts[j] as number)] as number);
      }
      cross += (factors[i] as number) * ofChange;
      own += (factors[i] as number) * ofChosen;
    }
    for (let a = 0; a < count; a++) this.#change[this.#changed[a] as number] = 0;
    return { cross, own };
  }

  /** Fills in d of a token; returns how many experts of `#changed` it concerns. */
  #setChange(token: number, { experts, factors, topK }: Choices, at: number): number {
    const [changed, change, full] = [this.#changed, this.#change, this.#full];
    let count = 0;
    for (let i = token * full.topK; i < (token + 1) * full.topK; i++) {
      if (full.factors[i] === 0) continue;
      const expert = full.experts[i] as number;
      changed[count++] = expert;
      change[expert] = -(full.factors[i] as number);
    }
    const own = count;
    for (let i = at * topK; i < (at + 1) * topK; i++) {
      if (factors[i] === 0) continue;
      const expert = experts[i] as number;
      let known = 0;
      while (known < own && changed[known] !== expert) known++;
      if (known === own) changed[count++] = expert;
      change[expert] = (change[expert] as number) + (factors[i] as number);
    }
    return count;
  }
}

const none: Choices = { experts: new Int32Array(0), factors: new Float32Array(0), topK: 0 };

function inExperts(
  { slots, gates, topK }: Routing,
  kept: readonly number[],
  scalesInput: true | undefined,
): Choices {
  return {
    experts: slots.map((slot) => kept[slot] ?? skipped),
    factors: scalesInput ? gates.map((_, i) => (slots[i] === skipped ? 0 : 1)) : gates,
    topK,
  };
}
