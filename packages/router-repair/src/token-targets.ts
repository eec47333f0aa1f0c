import type { RouterSpec, Routing } from "@coppice/core";
import { type Choice, findChoice, type GateRange, gateRange, type TokenQuadratic } from "./best-gates.js";
import type { BlockView } from "./block-view.js";
import { targetLogits } from "./target-logits.js";

/** What a fit of router rows aims at. */
export interface TokenTargets {
  /** Changes of logits, [tokens, slots]. */
  readonly changes: Float64Array;
  /** How much it matters to reach them, [tokens]. */
  readonly weights: Float64Array;
}

/**
 * For some tokens the change of logits that brings the block's output nearest to what it was, by what follows from the Gram
 * matrices alone: the best choice of slots and gate weights that the router could make (`findChoice`), and the logits
 * that make it (`targetLogits`).
 *
 * A token's weight is what its target gains, plus what missing it costs: with J the derivative of the gate weights by the
 * logits of the chosen slots at the target, the mean over these of J_iᵀ H J_i, the rise of e for a logit that is off by
 * one. Without the second part tokens that are served well already would have no say.
 * @param tokens indices of those that take part, one row of the result each
 * @param routing present one of all tokens, of which no choice is skipped
 */
export function tokenTargets(
  block: BlockView,
  tokens: readonly number[],
  logits: Float32Array,
  correction: Float32Array | undefined,
  { topK, slots: routed, gates: routedGates }: Routing,
  errors: Float64Array,
): TokenTargets {
  const { slots, router, plan } = block;
  const range = gateRange(router);
  const allowed = allowedChoices(router, plan.experts);
  const changes = new Float64Array(tokens.length * slots);
  const weights = new Float64Array(tokens.length);
  tokens.forEach((token, row) => {
    const quadratic = {
      grams: block.grams.subarray(token * slots * slots, (token + 1) * slots * slots),
      wanted: block.wanted.subarray(token * slots, (token + 1) * slots),
    };
    // The best groups may hold fewer slots than the top-k; what fills up has no gate weight.
    const places = Array.from({ length: topK }, (_, k) => token * topK + k).filter(
      (at) => (routedGates[at] as number) > 0,
    );
    const chosen = places.map((at) => routed[at] as number);
    const gates = places.map((at) => routedGates[at] as number);
    if (chosen.length === 0) return;
    const choice = findChoice(quadratic, chosen, gates, range, allowed);
    const own = logits.subarray(token * slots, (token + 1) * slots);
    const change = changes.subarray(row * slots, (row + 1) * slots);
    targetLogits(router, range, choice, own, correction, change);
    for (let slot = 0; slot < slots; slot++) {
      change[slot] = (change[slot] as number) - (own[slot] as number);
    }
    const gain = (errors[token] as number) - (block.norms[token] as number) - choice.error;
    weights[row] = Math.max(0, gain) + curvature(quadratic, choice, router, range);
  });
  return { changes, weights };
}

/** Mean over the chosen of J_iᵀ H J_i; sigmoids that are divided by their sum are taken as shares of a softmax. */
function curvature(
  { grams, wanted }: TokenQuadratic,
  { chosen, gates }: Choice,
  { order }: RouterSpec,
  range: GateRange,
): number {
  const slots = wanted.length;
  const alone = range.kind === "each" && order === "sigmoid-topk";
  let total = 0;
  for (let i = 0; i < chosen.length; i++) {
    const gate = gates[i] as number;
    const slope = Array.from(gates, (other, j) => {
      if (alone) return i === j ? gate * (1 - gate / range.total) : 0;
      return i === j ? gate * (1 - gate / range.total) : (-gate * other) / range.total;
    });
    for (let j = 0; j < chosen.length; j++) {
      if (slope[j] === 0) continue;
      for (let k = 0; k < chosen.length; k++) {
        const gram = grams[(chosen[j] as number) * slots + (chosen[k] as number)] as number;
        total += (slope[j] as number) * (slope[k] as number) * gram;
      }
    }
  }
  return total / chosen.length;
}

/** A choice may reach into as many groups as a token uses. */
function allowedChoices(
  { groups, weight }: RouterSpec,
  experts: readonly number[],
): (chosen: readonly number[]) => boolean {
  if (!groups) return () => true;
  const size = (weight.shape[0] as number) / groups.count;
  return (chosen) =>
    new Set(chosen.map((slot) => Math.floor((experts[slot] as number) / size))).size <= groups.keep;
}
