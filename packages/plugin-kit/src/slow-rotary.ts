import type { RotarySpec } from "@coppice/core";
import { range, type Vector } from "./slow-math.js";

/**
 * Rotates all of `x` by its position in a sequence of `length` positions, in float64: pairs are (i, i + n/2), or
 * (2i, 2i + 1) when the rotation is interleaved.
 */
export function rotate(x: Vector, position: number, length: number, rotary: RotarySpec): Vector {
  const half = x.length / 2;
  const turned = x.slice();
  for (const [i, frequency] of frequencies(rotary, length).entries()) {
    const [a, b] = rotary.interleaved ? [2 * i, 2 * i + 1] : [i, i + half];
    const [p, q] = [x[a] as number, x[b] as number];
    const factor = attentionFactor(rotary, length);
    turned[a] = factor * (p * Math.cos(position * frequency) - q * Math.sin(position * frequency));
    turned[b] = factor * (q * Math.cos(position * frequency) + p * Math.sin(position * frequency));
  }
  return turned;
}

function attentionFactor({ scaling }: RotarySpec, length: number): number {
  if (scaling?.kind === "yarn") return scaling.attentionFactor;
  if (scaling?.kind !== "longrope") return 1;
  const { attentionFactor: short, longAttentionFactor: long = short } = scaling;
  return length > scaling.originalContext ? long : short;
}

function frequencies({ theta, dimensions: d, scaling }: RotarySpec, length: number): Vector {
  const plain = range(0, d / 2).map((i) => theta ** ((-2 * i) / d));
  if (!scaling) return plain;
  switch (scaling.kind) {
    case "linear":
      return plain.map((frequency) => frequency / scaling.factor);
    case "dynamic": {
      // NTK-aware scaling whose factor follows the length, once that exceeds the original context.
      const { factor, originalContext } = scaling;
      if (length <= originalContext || d === 2) return plain;
      const base = theta * (1 + factor * (length / originalContext - 1)) ** (d / (d - 2));
      return plain.map((_, i) => base ** ((-2 * i) / d));
    }
    case "yarn": {
      // Frequencies that turn more than betaFast times in the original context stay, those that turn less than
      // betaSlow times are divided; in between the share of the two is linear in the index.
      const indexOf = (turns: number) =>
        ((d / 2) * Math.log(scaling.originalContext / (2 * Math.PI * turns))) / Math.log(theta);
      const borders = [indexOf(scaling.betaFast), indexOf(scaling.betaSlow)] as const;
      const low = Math.max(0, scaling.truncate ? Math.floor(borders[0]) : borders[0]);
      const high = Math.min(d - 1, scaling.truncate ? Math.ceil(borders[1]) : borders[1]);
      return plain.map((frequency, i) => {
        const ramp = (i - low) / (high === low ? 0.001 : high - low);
        const divided = Math.min(1, Math.max(0, ramp));
        return frequency * (1 - divided) + (frequency / scaling.factor) * divided;
      });
    }
    case "llama3": {
      const { factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalContext } = scaling;
      return plain.map((frequency) => {
        const turns = (originalContext * frequency) / (2 * Math.PI);
        const kept = Math.min(1, Math.max(0, (turns - low) / (high - low)));
        return kept * frequency + ((1 - kept) * frequency) / factor;
      });
    }
    case "longrope": {
      const divisors = length > scaling.originalContext ? scaling.longFactors : scaling.shortFactors;
      return plain.map((frequency, i) => frequency / (divisors[i] as number));
    }
  }
}
