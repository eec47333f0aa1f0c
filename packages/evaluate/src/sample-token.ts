import type { Rng } from "@coppice/core";

/**
 * Draws a token from softmax(logits / temperature), restricted to the smallest set of most likely tokens whose
 * probabilities reach `topP` (nucleus sampling; A. Holtzman et al., arXiv 1904.09751).
 */
export function sampleToken(logits: Float32Array, temperature: number, topP: number, rng: Rng): number {
  let max = Number.NEGATIVE_INFINITY;
  for (const logit of logits) max = Math.max(max, logit);
  const weights = Float64Array.from(logits, (logit) => Math.exp((logit - max) / temperature));
  const order = Array.from(weights, (_, id) => id);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let kept = total;
  let count = order.length;
  if (topP < 1) {
    order.sort((a, b) => (weights[b] as number) - (weights[a] as number) || a - b);
    kept = 0;
    count = 0;
    while (count < order.length && kept < topP * total) kept += weights[order[count++] as number] as number;
  }
  let left = rng.uniform() * kept;
  for (let i = 0; i < count; i++) {
    left -= weights[order[i] as number] as number;
    if (left < 0) return order[i] as number;
  }
  return order[count - 1] as number;
}
