import {
  CoppiceError,
  extraFields,
  type LayerStatistics,
  type LayerTap,
  sampleFields,
  statisticsFields,
} from "@coppice/core";
import { EveryExpert, type EveryFields } from "./every-expert.js";
import { addExtras } from "./extra-sums.js";
import { GramSum } from "./gram-sum.js";
import { required } from "./shown-field.js";

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
  readonly #every: EveryExpert;

  /** @param sums of no tokens yet; of what is collected on demand and of samples, what it has is collected */
  constructor(sums: LayerStatistics, settings: CollectorSettings) {
    const experts = sums.count.length;
    this.#sums = sums;
    this.#gram = new GramSum(sums.logitGram, experts);
    this.#settings = settings;
    this.#parts = new Float64Array(experts);
    this.#every = new EveryExpert(sums);
  }

  /**
   * The sums of all that was added; nothing may be added after it.
   * @throws COPPICE_BACKEND_FAILED naming the layer and the expert of a sum that is not finite
   */
  finish(): LayerStatistics {
    this.#gram.finish();
    const sums = this.#sums;
    for (const field of [...statisticsFields, ...extraFields]) {
      if (sums[field]) this.#checkFinite(`a sum of ${field}`, sums[field], 1);
    }
    for (const field of sampleFields) {
      const values = sums.sample?.[field];
      if (values && field !== "inputs") this.#checkFinite(`sampled ${field}`, values, this.#sampleSize);
    }
    return sums;
  }

  get #sampleSize(): number {
    return (this.#sums.sample?.logits.length ?? 0) / this.#sums.count.length;
  }

  /**
   * @param every what the tap asked for of all experts
   * @param sampled [tokens of the run], row of each token in the sample, -1 for those not in it; absent: none is
   * @throws COPPICE_BACKEND_FAILED naming the layer and the expert of a value that is not finite
   */
  add(shown: LayerTap, every: EveryFields, sampled?: Int32Array): void {
    const { tokens, topK } = shown;
    const routerLogits = required(shown, "routerLogits");
    const slots = required(shown, "slots");
    const gates = required(shown, "gates");
    const expertNorms = required(shown, "expertNorms");
    this.#addLogits(routerLogits, tokens);
    const sums = this.#sums;
    const experts = sums.count.length;
    for (let choice = 0; choice < tokens * topK; choice++) {
      const expert = slots[choice] as number;
      // A choice that the router's own rule skips.
      if (expert < 0) continue;
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
    if (sampled) this.#addSampled(shown, sampled);
    this.#every.add(shown, every, sampled);
    sums.tokens += tokens;
  }

  #addSampled(shown: LayerTap, sampled: Int32Array): void {
    const { sample } = this.#sums;
    if (!sample) return;
    const { tokens, rows } = shown;
    const logits = required(shown, "routerLogits");
    const inputs = sample.inputs && required(shown, "input");
    for (let token = 0; token < tokens; token++) {
      const row = sampled[rows[token] as number] ?? -1;
      if (row < 0) continue;
      copyRow(logits, token, tokens, sample.logits, row);
      if (sample.inputs && inputs) copyRow(inputs, token, tokens, sample.inputs, row);
    }
  }

  /** @param values [rows, experts, ...] */
  #checkFinite(what: string, values: Float32Array | Float64Array, rows: number): void {
    const bad = values.findIndex((value) => !Number.isFinite(value));
    if (bad < 0) return;
    const size = values.length / rows;
    const expert = Math.floor((bad % size) / (size / this.#sums.count.length));
    throw this.#notFinite(what, expert, values[bad] as number);
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

function copyRow(from: Float32Array, token: number, tokens: number, to: Float32Array, row: number): void {
  const size = from.length / tokens;
  to.set(from.subarray(token * size, (token + 1) * size), row * size);
}

function add(sums: Float64Array, at: number, value: number): void {
  sums[at] = (sums[at] as number) + value;
}
