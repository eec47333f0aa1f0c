import { CoppiceError, type LayerStatistics, type LayerTap } from "@coppice/core";
import { addExtras } from "./extra-sums.js";
import { GramSum } from "./gram-sum.js";

/** What sums depend on beside what a tap shows. */
export interface CollectorSettings {
  /** True when gate weights multiply the experts' inputs, so that outputs contain them already. */
  readonly scalesInput: boolean;
  /** Factor on what the block adds to the residual stream. */
  readonly residualScale: number;
}

/** Adds what a tap shows of one layer, run without a plan, to the layer's sums. */
export class LayerCollector {
  readonly #sums: LayerStatistics;
  readonly #gram: GramSum;
  /** Unnormalised probabilities of one token. */
  readonly #parts: Float64Array;
  readonly #settings: CollectorSettings;

  /** @param sums of no tokens yet; of what is collected on demand, what it has is collected */
  constructor(sums: LayerStatistics, settings: CollectorSettings) {
    const experts = sums.count.length;
    this.#sums = sums;
    this.#gram = new GramSum(sums.logitGram, experts);
    this.#settings = settings;
    this.#parts = new Float64Array(experts);
  }

  /** The sums of all that was added; nothing may be added after it. */
  finish(): LayerStatistics {
    this.#gram.finish();
    return this.#sums;
  }

  /** @throws COPPICE_BACKEND_FAILED naming the layer and the expert of a value that is not finite */
  add(shown: LayerTap): void {
    const { tokens, topK, routerLogits, slots, gates, expertNorms } = shown;
    if (!routerLogits || !slots || !gates || !expertNorms) {
      throw new CoppiceError(
        "COPPICE_BACKEND_FAILED",
        `the backend did not show routing, router logits and expert norms of layer ${this.#sums.layer}`,
      );
    }
    this.#addLogits(routerLogits, tokens);
    const sums = this.#sums;
    const experts = sums.count.length;
    for (let choice = 0; choice < tokens * topK; choice++) {
      const expert = slots[choice] as number;
      const g = gates[choice] as number;
      const f = expertNorms[choice] as number;
      if (!Number.isFinite(f)) throw this.#notFinite("an output of norm", expert, f);
      if (!Number.isFinite(g)) throw this.#notFinite("the gate weight", expert, g);
      // Where f contains g, a power of g is left only beyond the power of f.
      const scale = this.#settings.scalesInput ? 1 : g;
      add(sums.count, expert, 1);
      add(sums.gate, expert, g);
      add(sums.gate2, expert, g * g);
      add(sums.norm, expert, f);
      add(sums.gateNorm, expert, scale * f);
      add(sums.gate2Norm, expert, scale * g * f);
      add(sums.norm2, expert, f * f);
      add(sums.gateNorm2, expert, scale * f * f);
      add(sums.gate2Norm2, expert, scale * scale * f * f);
      const token = Math.floor(choice / topK);
      add(sums.routedLogit, expert, routerLogits[token * experts + expert] as number);
    }
    addExtras(sums, shown, this.#settings);
    sums.tokens += tokens;
  }

  /** Softmax over all experts in float64, the largest logit, and the Gram matrix. */
  #addLogits(logits: Float32Array, tokens: number): void {
    const parts = this.#parts;
    const experts = parts.length;
    for (let token = 0; token < tokens; token++) {
      const at = token * experts;
      let max = Number.NEGATIVE_INFINITY;
      let top = 0;
      for (let expert = 0; expert < experts; expert++) {
        const logit = logits[at + expert] as number;
        if (!Number.isFinite(logit)) throw this.#notFinite("the router logit", expert, logit);
        if (logit > max) {
          max = logit;
          top = expert;
        }
      }
      let sum = 0;
      for (let expert = 0; expert < experts; expert++) {
        const part = Math.exp((logits[at + expert] as number) - max);
        parts[expert] = part;
        sum += part;
      }
      for (let expert = 0; expert < experts; expert++) {
        add(this.#sums.probability, expert, (parts[expert] as number) / sum);
      }
      add(this.#sums.topLogit, top, max);
    }
    this.#gram.add(logits, tokens);
  }

  #notFinite(what: string, expert: number, value: number): CoppiceError {
    const { layer } = this.#sums;
    return new CoppiceError(
      "COPPICE_BACKEND_FAILED",
      `expert ${expert} of layer ${layer} got ${what} ${value}; statistics need finite numbers`,
      {
        hint: "the checkpoint's weights are damaged, or the backend's precision is too low for this model",
        details: { layer, expert, value: String(value) },
      },
    );
  }
}

function add(sums: Float64Array, at: number, value: number): void {
  sums[at] = (sums[at] as number) + value;
}
