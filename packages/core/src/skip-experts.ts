import type { RouterSpec } from "./model.js";
import type { LayerPlan, SkipRule } from "./plan.js";

/** Slot of a choice that does not run. */
export const skipped = -1;

/** The rule of a layer under a plan: the plan's, else the router's own; undefined when none skips anything. */
export function skipRuleOf(router: Pick<RouterSpec, "skip">, plan?: LayerPlan): SkipRule | undefined {
  const rule = plan?.skip ?? router.skip;
  // Gate weights are at least 0, so that a ratio of 0 skips none.
  return rule && (rule.rule === "top-p" || rule.threshold > 0) ? rule : undefined;
}

/**
 * Applies a rule to one token's choices: those that do not run get the slot -1 and the gate weight 0.
 * @param slots [k] of one token
 * @param gates [k], not negative, not yet divided by their sum
 */
export function skipExperts({ rule, threshold }: SkipRule, slots: Int32Array, gates: Float32Array): void {
  const drop = (i: number) => {
    slots[i] = skipped;
    gates[i] = 0;
  };
  if (rule === "ratio") {
    const least = threshold * gates.reduce((most, gate) => Math.max(most, gate), 0);
    const best = largest(gates);
    for (let i = 0; i < gates.length; i++) if (i !== best && (gates[i] as number) < least) drop(i);
    return;
  }
  const order = Array.from(gates.keys()).sort((a, b) => (gates[b] as number) - (gates[a] as number) || a - b);
  const total = order.reduce((sum, i) => sum + (gates[i] as number), 0);
  let sum = 0;
  for (const [rank, i] of order.entries()) {
    if (rank > 0 && sum >= threshold * total) drop(i);
    else sum += gates[i] as number;
  }
}

function largest(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] as number) > (values[best] as number)) best = i;
  return best;
}

/**
 * Importance of the tokens of one sequence that are run together, after ODP of MC-MoE (arXiv 2410.06270): the attention
 * that a token receives from itself and later tokens, averaged over heads and over those tokens, times the L1 norm of its
 * MoE input. The released code sums over keys instead, where every softmax sums to 1; the paper's text asks for what a
 * token receives.
 * @param received [T], sums over heads and queries of attention probabilities
 * @param inputs [T, hidden]
 */
export function tokenImportance(
  received: ArrayLike<number>,
  heads: number,
  inputs: Float32Array,
): Float64Array {
  const tokens = received.length;
  const hidden = inputs.length / tokens;
  return Float64Array.from({ length: tokens }, (_, token) => {
    let norm = 0;
    for (let i = token * hidden; i < (token + 1) * hidden; i++) norm += Math.abs(inputs[i] as number);
    return ((received[token] as number) / (heads * (tokens - token))) * norm;
  });
}

/** The tokens of one sequence that skip nothing: 1 for the `share` most important, ties to the earlier. */
export function sparedTokens(importance: Float64Array, share: number): Uint8Array {
  const spared = new Uint8Array(importance.length);
  const order = Array.from(importance.keys()).sort(
    (a, b) => (importance[b] as number) - (importance[a] as number) || a - b,
  );
  for (const token of order.slice(0, Math.ceil(share * importance.length))) spared[token] = 1;
  return spared;
}
