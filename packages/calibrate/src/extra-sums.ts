import type { ExtraField, LayerStatistics, LayerTap, SampleField, TapField } from "@coppice/core";
import type { CollectorSettings } from "./layer-collector.js";
import { required } from "./shown-field.js";

/** What a tap must show for each of the sums that are collected on demand. */
export const extraTapFields: Readonly<Record<ExtraField, readonly TapField[]>> = {
  change: ["residual", "output"],
  peak: ["expertPeaks"],
  outputSum: ["expertOutputs"],
  outputNorm2: ["expertOutputs"],
  unitSquares: ["everyUnit"],
  everyOutputSum: ["everyOutput"],
  outputGram: ["everyOutput"],
  outputCosine: ["everyOutput"],
};

/** What a tap must show for each field of a sample. */
export const sampleTapFields: Readonly<Record<SampleField, readonly TapField[]>> = {
  logits: [],
  inputs: ["input"],
  grams: ["everyOutput"],
  units: ["everyUnit"],
};

/** Adds what a tap shows of the chosen experts of one layer to those of its sums that were asked for. */
export function addExtras(
  sums: LayerStatistics,
  shown: LayerTap,
  { scalesInput, residualScale }: CollectorSettings,
): void {
  const { tokens, topK, slots, gates, expertNorms } = shown;
  const { change, peak, outputSum, outputNorm2 } = sums;
  if (!slots || !gates || !expertNorms) return;
  if (change) {
    const changes = tokenChanges(
      required(shown, "residual"),
      required(shown, "output"),
      tokens,
      residualScale,
    );
    for (let choice = 0; choice < tokens * topK; choice++) {
      const expert = slots[choice] as number;
      if (expert < 0) continue;
      const added = (scalesInput ? 1 : (gates[choice] as number)) * (expertNorms[choice] as number);
      change[expert] = (change[expert] as number) + (changes[Math.floor(choice / topK)] as number) * added;
    }
  }
  if (peak) {
    const peaks = required(shown, "expertPeaks");
    for (let choice = 0; choice < tokens * topK; choice++) {
      const expert = slots[choice] as number;
      if (expert < 0) continue;
      peak[expert] = Math.max(peak[expert] as number, peaks[choice] as number);
    }
  }
  if (outputSum || outputNorm2) {
    const outputs = required(shown, "expertOutputs");
    const hidden = outputs.length / (tokens * topK);
    for (let choice = 0; choice < tokens * topK; choice++) {
      const expert = slots[choice] as number;
      if (expert < 0) continue;
      const output = outputs.subarray(choice * hidden, (choice + 1) * hidden);
      if (outputSum) addTo(outputSum.subarray(expert * hidden, (expert + 1) * hidden), output);
      if (outputNorm2) outputNorm2[expert] = (outputNorm2[expert] as number) + squares(output);
    }
  }
}

function addTo(sums: Float64Array, values: Float32Array): void {
  for (let i = 0; i < values.length; i++) sums[i] = (sums[i] as number) + (values[i] as number);
}

function squares(values: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += (values[i] as number) ** 2;
  return sum;
}

/**
 * How much the routed experts turn each token, `max(0, 1 - cos(h, h + s y))`: h the residual stream before the block, y
 * what they add, s the model's factor on it (arXiv 2504.06792). 1 where one of the two is zero.
 */
function tokenChanges(h: Float32Array, y: Float32Array, tokens: number, scale: number): Float64Array {
  const hidden = h.length / tokens;
  return Float64Array.from({ length: tokens }, (_, token) => {
    let before = 0;
    let after = 0;
    let both = 0;
    for (let i = token * hidden; i < (token + 1) * hidden; i++) {
      const from = h[i] as number;
      const to = from + scale * (y[i] as number);
      before += from * from;
      after += to * to;
      both += from * to;
    }
    return before === 0 || after === 0 ? 1 : Math.max(0, 1 - both / Math.sqrt(before * after));
  });
}
