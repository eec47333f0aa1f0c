import type { RotarySpec } from "./model.js";

const { fround } = Math;

/** What turns the positions of one sequence. */
export interface RotaryFrequencies {
  /** [dimensions / 2], radians per position, rounded to float32. */
  readonly frequencies: Float32Array;
  /** Factor on cos and sin. */
  readonly factor: number;
}

/**
 * Frequencies of a rotary embedding for a sequence of `length` positions in all, past ones included. Rounded to
 * float32 step by step as in Hugging Face transformers (`modeling_rope_utils.py`): at position 100,000 exact angles
 * would differ from those a model was trained with by more than the tolerance of a logit.
 */
export function rotaryFrequencies(rotary: RotarySpec, length: number): RotaryFrequencies {
  const { theta, dimensions, scaling } = rotary;
  const half = dimensions / 2;
  const frequencies = new Float32Array(half);
  const periods = (base: number, i: number) => fround(base ** fround((2 * i) / dimensions));
  const each = (value: (i: number) => number) => {
    for (let i = 0; i < half; i++) frequencies[i] = value(i);
    return frequencies;
  };
  switch (scaling?.kind) {
    case undefined:
      return { frequencies: each((i) => 1 / periods(theta, i)), factor: 1 };
    case "linear":
      return { frequencies: each((i) => fround(1 / periods(theta, i)) / scaling.factor), factor: 1 };
    case "dynamic": {
      const { factor, originalContext } = scaling;
      const longest = Math.max(length, originalContext);
      const stretch = (factor * longest) / originalContext - (factor - 1);
      // One pair of dimensions has no exponent to stretch; transformers divides by zero there.
      const base = dimensions > 2 ? theta * stretch ** (dimensions / (dimensions - 2)) : theta;
      return { frequencies: each((i) => 1 / periods(base, i)), factor: 1 };
    }
    case "llama3": {
      const { factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalContext } = scaling;
      const scaled = (i: number) => {
        const frequency = fround(1 / periods(theta, i));
        const wavelength = fround((2 * Math.PI) / frequency);
        if (wavelength > originalContext / low) return frequency / factor;
        if (wavelength < originalContext / high) return frequency;
        const smooth = (originalContext / wavelength - low) / (high - low);
        return ((1 - smooth) * frequency) / factor + smooth * frequency;
      };
      return { frequencies: each(scaled), factor: 1 };
    }
    case "longrope": {
      const { shortFactors, longFactors, originalContext, attentionFactor } = scaling;
      const isLong = length > originalContext;
      const factors = isLong ? longFactors : shortFactors;
      return {
        frequencies: each((i) => 1 / fround(fround(factors[i] as number) * periods(theta, i))),
        factor: isLong ? (scaling.longAttentionFactor ?? attentionFactor) : attentionFactor,
      };
    }
    case "yarn": {
      const { factor, originalContext, betaFast, betaSlow, attentionFactor, truncate } = scaling;
      const border = (rotations: number) =>
        (dimensions * Math.log(originalContext / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
      const low = Math.max(truncate ? Math.floor(border(betaFast)) : border(betaFast), 0);
      let high = Math.min(truncate ? Math.ceil(border(betaSlow)) : border(betaSlow), dimensions - 1);
      if (low === high) high += 0.001;
      const scaled = (i: number) => {
        const period = periods(theta, i);
        const plain = fround(1 - Math.min(1, Math.max(0, (i - low) / (high - low))));
        return fround(1 / fround(factor * period)) * (1 - plain) + fround(1 / period) * plain;
      };
      return { frequencies: each(scaled), factor: attentionFactor };
    }
  }
}

/**
 * Sequences of equal regime have equal frequencies, whatever their lengths: 0 unless the frequencies depend on the
 * length (`dynamic`, `longrope`) and it exceeds the original context.
 */
export function rotaryRegime({ scaling }: RotarySpec, length: number): number {
  if (scaling?.kind === "longrope") return length > scaling.originalContext ? 1 : 0;
  if (scaling?.kind === "dynamic") return length > scaling.originalContext ? length : 0;
  return 0;
}
