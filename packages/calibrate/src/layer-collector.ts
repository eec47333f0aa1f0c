import { CoppiceError, type LayerStatistics, type LayerTap } from "@coppice/core";

/** Adds what a tap shows of one layer, run without a plan, to the layer's sums. */
export class LayerCollector {
  readonly sums: LayerStatistics;
  /** Unnormalised probabilities of one token. */
  readonly #parts: Float64Array;
  readonly #scalesInput: boolean;

  /** @param scalesInput true when gate weights multiply the experts' inputs, so that outputs contain them already */
  constructor(sums: LayerStatistics, scalesInput = false) {
    this.sums = sums;
    this.#scalesInput = scalesInput;
    this.#parts = new Float64Array(sums.count.length);
  }

  /** @throws COPPICE_BACKEND_FAILED naming the layer and the expert of a value that is not finite */
  add({ tokens, topK, routerLogits, slots, gates, expertNorms }: LayerTap): void {
    if (!routerLogits || !slots || !gates || !expertNorms) {
      throw new CoppiceError(
        "COPPICE_BACKEND_FAILED",
        `the backend did not show routing, router logits and expert norms of layer ${this.sums.layer}`,
      );
    }
    this.#addProbabilities(routerLogits, tokens);
    const { count, gate, norm, squaredNorm, gateNorm, squaredGateNorm } = this.sums;
    for (let choice = 0; choice < tokens * topK; choice++) {
      const expert = slots[choice] as number;
      const g = gates[choice] as number;
      const f = expertNorms[choice] as number;
      if (!Number.isFinite(f)) throw this.#notFinite("an output of norm", expert, f);
      if (!Number.isFinite(g)) throw this.#notFinite("the gate weight", expert, g);
      add(count, expert, 1);
      add(gate, expert, g);
      add(norm, expert, f);
      add(squaredNorm, expert, f * f);
      const added = this.#scalesInput ? f : g * f;
      add(gateNorm, expert, added);
      add(squaredGateNorm, expert, added * added);
    }
    this.sums.tokens += tokens;
  }

  /** Softmax over all experts in float64. */
  #addProbabilities(logits: Float32Array, tokens: number): void {
    const parts = this.#parts;
    const experts = parts.length;
    for (let token = 0; token < tokens; token++) {
      const at = token * experts;
      let max = Number.NEGATIVE_INFINITY;
      for (let expert = 0; expert < experts; expert++) {
        const logit = logits[at + expert] as number;
        if (!Number.isFinite(logit)) throw this.#notFinite("the router logit", expert, logit);
        if (logit > max) max = logit;
      }
      let sum = 0;
      for (let expert = 0; expert < experts; expert++) {
        const part = Math.exp((logits[at + expert] as number) - max);
        parts[expert] = part;
        sum += part;
      }
      for (let expert = 0; expert < experts; expert++) {
        add(this.sums.probability, expert, (parts[expert] as number) / sum);
      }
    }
  }

  #notFinite(what: string, expert: number, value: number): CoppiceError {
    const { layer } = this.sums;
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
