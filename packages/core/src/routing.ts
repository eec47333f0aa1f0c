import type { RouterSpec } from "./model.js";
import type { LayerPlan } from "./plan.js";

/** Which slots serve each token, and with what weight. */
export interface Routing {
  readonly topK: number;
  /** [tokens, k], by descending gate weight; ties go to the lower slot. */
  readonly slots: Int32Array;
  /** [tokens, k], the coefficient that multiplies each chosen expert's output. */
  readonly gates: Float32Array;
}

/**
 * Routes tokens in the family's exact order (float32 softmax, as the reference implementations do).
 * @param logits [tokens, n] raw router logits: n is the number of kept experts, in slot order, or the number of
 * original experts when `plan` has a router map
 */
export function routeTokens(
  logits: Float32Array,
  tokens: number,
  router: RouterSpec,
  plan?: LayerPlan,
): Routing {
  const columns = logits.length / tokens;
  const map = plan?.routerMap;
  const slotCount = map ? map.length : columns;
  const topK = Math.min(plan?.topK ?? router.topK, slotCount);
  const slots = new Int32Array(tokens * topK);
  const gates = new Float32Array(tokens * topK);
  const probabilities = new Float32Array(columns);
  const mapped = map ? new Float32Array(slotCount) : probabilities;
  const divide = router.normalize || map !== undefined;
  for (let token = 0; token < tokens; token++) {
    softmax(logits, token * columns, probabilities);
    if (map) applyMap(map, probabilities, mapped);
    const start = token * topK;
    selectTop(mapped, topK, slots, gates, start);
    if (!divide) continue;
    let sum = 0;
    for (let i = 0; i < topK; i++) sum += gates[start + i] as number;
    // A free map may make the chosen values cancel; gates would explode. No published guard exists
    // (EEP's code has none), so such a token takes its best slot alone.
    if (map && !(Math.abs(sum) > 1e-6)) {
      for (let i = 0; i < topK; i++) gates[start + i] = i === 0 ? 1 : 0;
      continue;
    }
    for (let i = 0; i < topK; i++) gates[start + i] = (gates[start + i] as number) / sum;
  }
  return { topK, slots, gates };
}

function softmax(logits: Float32Array, offset: number, out: Float32Array): void {
  let max = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < out.length; i++) max = Math.max(max, logits[offset + i] as number);
  let sum = 0;
  for (let i = 0; i < out.length; i++) {
    const value = Math.exp((logits[offset + i] as number) - max);
    out[i] = value;
    sum += value;
  }
  for (let i = 0; i < out.length; i++) out[i] = (out[i] as number) / sum;
}

function applyMap(map: readonly (readonly number[])[], probabilities: Float32Array, out: Float32Array): void {
  for (let slot = 0; slot < out.length; slot++) {
    const row = map[slot] as readonly number[];
    let value = 0;
    for (let i = 0; i < probabilities.length; i++) value += (row[i] as number) * (probabilities[i] as number);
    out[slot] = value;
  }
}

/** Insertion into the k best; k is small. */
function selectTop(
  values: Float32Array,
  k: number,
  slots: Int32Array,
  gates: Float32Array,
  start: number,
): void {
  let filled = 0;
  for (let slot = 0; slot < values.length; slot++) {
    const value = values[slot] as number;
    if (filled === k && !(value > (gates[start + k - 1] as number))) continue;
    let at = filled < k ? filled++ : k - 1;
    while (at > 0 && value > (gates[start + at - 1] as number)) {
      gates[start + at] = gates[start + at - 1] as number;
      slots[start + at] = slots[start + at - 1] as number;
      at--;
    }
    gates[start + at] = value;
    slots[start + at] = slot;
  }
}
