import type { LayerStatistics, LayerTap } from "@coppice/core";
import { rowGram } from "./row-gram.js";
import { required } from "./shown-field.js";

/** What is asked of taps for all experts. */
export interface EveryFields {
  readonly outputs: boolean;
  readonly units: boolean;
}

/**
 * Sums over what all experts put out for a token, whichever it was routed to, and the Gram matrices and hidden units of
 * sampled tokens.
 */
export class EveryExpert {
  readonly #sums: LayerStatistics;
  /** Gram matrix of one token's outputs, [experts, experts]. */
  readonly #gram: Float64Array;

  constructor(sums: LayerStatistics) {
    this.#sums = sums;
    this.#gram = new Float64Array(sums.count.length ** 2);
  }

  /** @param sampled [tokens of the run], row of each token in the sample, -1 for those not in it */
  add(shown: LayerTap, { outputs, units }: EveryFields, sampled: Int32Array | undefined): void {
    if (!outputs && !units) return;
    const everyRows = required(shown, "everyRows");
    const everyOutput = outputs && required(shown, "everyOutput");
    const everyUnit = units && required(shown, "everyUnit");
    everyRows.forEach((token, m) => {
      const row = sampled?.[shown.rows[token] as number] ?? -1;
      if (everyOutput) this.#addOutputs(part(everyOutput, m, everyRows.length), row);
      if (everyUnit) this.#addUnits(part(everyUnit, m, everyRows.length), token, row, shown);
    });
  }

  #addOutputs(outputs: Float32Array, row: number): void {
    const { everyOutputSum, outputGram, outputCosine, sample } = this.#sums;
    if (everyOutputSum) {
      for (let i = 0; i < outputs.length; i++) {
        everyOutputSum[i] = (everyOutputSum[i] as number) + (outputs[i] as number);
      }
    }
    const grams = row < 0 ? undefined : sample?.grams;
    if (!outputGram && !outputCosine && !grams) return;
    const gram = this.#gram;
    const experts = this.#sums.count.length;
    rowGram(outputs, experts, gram);
    grams?.set(gram, row * gram.length);
    if (outputGram)
      for (let i = 0; i < gram.length; i++) outputGram[i] = (outputGram[i] as number) + (gram[i] as number);
    if (outputCosine) addCosines(outputCosine, gram, experts);
  }

  #addUnits(units: Float32Array, token: number, row: number, { slots, topK }: LayerTap): void {
    const { unitSquares, sample } = this.#sums;
    if (row >= 0) sample?.units?.set(units, row * units.length);
    if (!unitSquares || !slots) return;
    const width = units.length / this.#sums.count.length;
    for (let choice = token * topK; choice < (token + 1) * topK; choice++) {
      const expert = slots[choice] as number;
      if (expert < 0) continue;
      for (let i = expert * width; i < (expert + 1) * width; i++) {
        unitSquares[i] = (unitSquares[i] as number) + (units[i] as number) ** 2;
      }
    }
  }
}

function part(values: Float32Array, index: number, count: number): Float32Array {
  const size = values.length / count;
  return values.subarray(index * size, (index + 1) * size);
}

/** Adds ⟨f_i, f_j⟩ / (‖f_i‖ ‖f_j‖), or 0 where one of the two is zero. */
function addCosines(sums: Float64Array, gram: Float64Array, experts: number): void {
  for (let i = 0; i < experts; i++) {
    const own = gram[i * experts + i] as number;
    if (own === 0) continue;
    for (let j = i; j < experts; j++) {
      const other = gram[j * experts + j] as number;
      if (other === 0) continue;
      const cosine = (gram[i * experts + j] as number) / Math.sqrt(own * other);
      sums[i * experts + j] = (sums[i * experts + j] as number) + cosine;
      if (j > i) sums[j * experts + i] = (sums[j * experts + i] as number) + cosine;
    }
  }
}
