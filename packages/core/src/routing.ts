import type { NormalizeSpec, RouterGroups, RouterSpec } from "./model.js";
import type { LayerPlan } from "./plan.js";
import { skipExperts, skipRuleOf } from "./skip-experts.js";

/** Which slots serve each token, and with what weight. */
export interface Routing {
  readonly topK: number;
  /** [tokens, k], by descending selection score; ties go to the lower slot; -1 for a choice that the plan skips. */
  readonly slots: Int32Array;
  /** [tokens, k], the coefficient that multiplies each chosen expert's output, or its input (`scalesInput`); 0 if skipped. */
  readonly gates: Float32Array;
}

export interface RoutingOptions {
  readonly plan?: LayerPlan | undefined;
  /** [n], values of the router's `correction` in the order of the logits' columns. */
  readonly correction?: Float32Array | undefined;
  /** [tokens], 1 for those that skip nothing although the plan has a rule (`sparedTokens`). */
  readonly spared?: Uint8Array | undefined;
}

/**
 * Routes tokens in the family's exact order, scores in float32 as the reference implementations have them (Hugging
 * Face transformers 5.17). Experts that a plan dropped do not exist; those that are left keep their groups.
 * @param logits [tokens, n] router logits, the router's bias included: n is the number of kept experts, in slot
 * order, or the number of original experts when the plan has a router map
 */
export function routeTokens(
  logits: Float32Array,
  tokens: number,
  router: RouterSpec,
  { plan, correction, spared }: RoutingOptions = {},
): Routing {
  const columns = logits.length / tokens;
  const map = plan?.routerMap;
  const slotCount = map ? map.length : columns;
  const topK = Math.min(plan?.topK ?? router.topK, slotCount);
  const slots = new Int32Array(tokens * topK);
  const gates = new Float32Array(tokens * topK);
  const skip = skipRuleOf(router, plan);
  const skipAt = (token: number) => {
    const [start, end] = [token * topK, (token + 1) * topK];
    if (skip && !spared?.[token]) skipExperts(skip, slots.subarray(start, end), gates.subarray(start, end));
  };
  if (router.order === "sparsemixer") {
    for (let token = 0; token < tokens; token++) {
      const row = logits.subarray(token * columns, (token + 1) * columns);
      mixSparsely(row, topK, router.jitter ?? 0, slots, gates, token * topK);
      skipAt(token);
    }
    return { topK, slots, gates };
  }
  const scores = new Float32Array(columns);
  const mapped = map ? new Float32Array(slotCount) : scores;
  const selection = correction || router.groups ? new Float32Array(slotCount) : mapped;
  const grouping = router.groups && groupSlots(router.groups, router, columns, plan);
  // The softmax over the chosen is one over those that are left.
  const dividesChosen = skip && router.order === "topk-softmax" ? { power: 1 } : undefined;
  const normalize = map ? { power: 1 } : (router.normalize ?? dividesChosen);
  for (let token = 0; token < tokens; token++) {
    score(router.order, logits, token * columns, scores);
    if (map) applyMap(map, scores, mapped);
    if (selection !== mapped) {
      for (let slot = 0; slot < slotCount; slot++) {
        selection[slot] = (mapped[slot] as number) + (correction?.[slot] ?? 0);
      }
      if (grouping) limitToGroups(grouping, selection);
    }
    const start = token * topK;
    const end = start + topK;
    selectTop(selection, topK, slots, gates, start);
    if (selection !== mapped) {
      for (let i = start; i < end; i++) {
        // The best groups of an uneven plan may hold fewer than k experts; the rest of the k adds nothing.
        gates[i] = gates[i] === Number.NEGATIVE_INFINITY ? 0 : (mapped[slots[i] as number] as number);
      }
    }
    if (router.order === "topk-softmax") softmax(gates.subarray(start, end), 0, gates.subarray(start, end));
    else if (router.order === "topk-sigmoid")
      for (let i = start; i < end; i++) gates[i] = sigmoid(gates[i] as number);
    skipAt(token);
    if (normalize) divide(gates, start, end, normalize, map !== undefined);
    if (router.scale !== undefined)
      for (let i = start; i < end; i++) gates[i] = (gates[i] as number) * router.scale;
  }
  return { topK, slots, gates };
}

function score(order: RouterSpec["order"], logits: Float32Array, offset: number, out: Float32Array): void {
  if (order === "softmax-topk") softmax(logits, offset, out);
  else if (order === "sigmoid-topk") {
    for (let i = 0; i < out.length; i++) out[i] = sigmoid(logits[offset + i] as number);
  } else out.set(logits.subarray(offset, offset + out.length));
}

function sigmoid(value: number): number {
  return 1 / (1 + Math.exp(-value));
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

function divide(
  gates: Float32Array,
  start: number,
  end: number,
  { power, least, epsilon = 0 }: NormalizeSpec,
  mapped: boolean,
): void {
  let sum = 0;
  for (let i = start; i < end; i++) {
    const gate = gates[i] as number;
    sum += power === 1 ? gate : Math.abs(gate) ** power;
  }
  // A free map may make the chosen values cancel; gates would explode. No published guard exists (EEP's code has
  // none), so such a token takes its best slot alone.
  if (mapped && !(Math.abs(sum) > 1e-6)) {
    for (let i = start; i < end; i++) gates[i] = i === start ? 1 : 0;
    return;
  }
  const norm = power === 1 ? sum : sum ** (1 / power);
  const divisor = (least === undefined ? norm : Math.max(norm, least)) + epsilon;
  for (let i = start; i < end; i++) gates[i] = (gates[i] as number) / divisor;
}

interface SlotGroups {
  readonly keep: number;
  readonly score: RouterGroups["score"];
  /** Slots of each group. */
  readonly members: readonly (readonly number[])[];
}

/** Groups as they are left: slot i stands in the group of the original expert that answers for it. */
function groupSlots(
  { count, keep, score }: RouterGroups,
  router: RouterSpec,
  columns: number,
  plan: LayerPlan | undefined,
): SlotGroups {
  const size = (router.weight.shape[0] as number) / count;
  const members = Array.from({ length: count }, () => [] as number[]);
  for (let slot = 0; slot < columns; slot++) {
    const expert = plan?.experts[slot] ?? slot;
    members[Math.floor(expert / size)]?.push(slot);
  }
  return { keep, score, members: members.filter((slots) => slots.length > 0) };
}

/** Sets the selection scores of all groups but the best to -infinity; ties go to the lower group. */
function limitToGroups({ keep, score, members }: SlotGroups, selection: Float32Array): void {
  const scores = Float32Array.from(members, (slots) => {
    let first = Number.NEGATIVE_INFINITY;
    let second = Number.NEGATIVE_INFINITY;
    for (const slot of slots) {
      const value = selection[slot] as number;
      if (value > first) {
        second = first;
        first = value;
      } else if (value > second) second = value;
    }
    return score === "max" || slots.length === 1 ? first : first + second;
  });
  const order = Array.from(members.keys()).sort(
    (a, b) => (scores[b] as number) - (scores[a] as number) || a - b,
  );
  for (const group of order.slice(keep)) {
    for (const slot of members[group] as readonly number[]) selection[slot] = Number.NEGATIVE_INFINITY;
  }
}

/**
 * SparseMixer-v2 at inference (arXiv 2409.12136; `sparsemixer` of transformers' phimoe): the best expert's gate weight
 * is its softmax among those whose logit is within the tolerance of the best; the next one is found likewise among the
 * others. Gate weights are not divided by their sum.
 */
function mixSparsely(
  logits: Float32Array,
  topK: number,
  jitter: number,
  slots: Int32Array,
  gates: Float32Array,
  start: number,
): void {
  const taken = new Set<number>();
  for (let rank = 0; rank < topK; rank++) {
    let best = -1;
    for (let slot = 0; slot < logits.length; slot++) {
      if (!taken.has(slot) && (best < 0 || (logits[slot] as number) > (logits[best] as number))) best = slot;
    }
    const most = logits[best] as number;
    let sum = 0;
    for (let slot = 0; slot < logits.length; slot++) {
      if (taken.has(slot)) continue;
      const value = logits[slot] as number;
      const distance = Math.fround(Math.fround(most - value) / Math.max(Math.abs(value), most));
      if (!(distance > Math.fround(2 * jitter))) sum += Math.exp(value - most);
    }
    slots[start + rank] = best;
    gates[start + rank] = 1 / sum;
    taken.add(best);
  }
}
