import type { LayerPlan, RouterSpec, SkipRule } from "@coppice/core";
import { inner, range, sigmoid, softmax, total, type Vector } from "./slow-math.js";

/**
 * Chosen slots of one token and their gate weights, by descending selection score, written from the formulas of the
 * families. Dropped experts are masked: in a softmax their logit is -1e9, and they cannot be chosen. Choices that the
 * plan or the router skips have the slot -1 and the gate weight 0.
 * @param logits of all original experts, the router's bias included
 * @param correction of all original experts
 * @param spared true for a token that skips nothing
 */
export function chooseSlots(
  logits: Vector,
  router: RouterSpec,
  plan: LayerPlan | undefined,
  correction: ArrayLike<number> | undefined,
  spared: boolean,
): { slot: number; gate: number }[] {
  const kept = plan?.experts ?? range(0, logits.length);
  const topK = plan?.topK ?? router.topK;
  const rule = spared ? undefined : (plan?.skip ?? router.skip);
  if (router.order === "sparsemixer") {
    const chosen = mixSparsely(logits, kept, topK, router.jitter ?? 0);
    const runs = runningChoices(
      chosen.map(({ gate }) => gate),
      rule,
    );
    return chosen.map((choice, i) => (runs[i] ? choice : { slot: -1, gate: 0 }));
  }

  const map = plan?.routerMap;
  const masked = logits.map((z, expert) => (map || kept.includes(expert) ? z : -1e9));
  const scores =
    router.order === "softmax-topk"
      ? softmax(masked)
      : router.order === "sigmoid-topk"
        ? logits.map(sigmoid)
        : logits;
  const scoreOf = (slot: number) =>
    map ? inner(map[slot] as Vector, scores) : (scores[kept[slot] as number] as number);
  const selection = kept.map((expert, slot) => scoreOf(slot) + (correction?.[expert] ?? 0));
  const allowed = allowedSlots(selection, kept, router, logits.length);
  const chosen = best(allowed, selection, topK);

  let gates = chosen.map(scoreOf);
  if (router.order === "topk-softmax") gates = softmax(gates);
  if (router.order === "topk-sigmoid") gates = gates.map(sigmoid);
  const runs = runningChoices(gates, rule);
  gates = gates.map((gate, i) => (runs[i] ? gate : 0));
  // A softmax over those that are left has the same ratios and the sum 1.
  const divisor = map || (rule && router.order === "topk-softmax") ? total(gates) : divisorOf(gates, router);
  return chosen.map((slot, i) => ({
    slot: runs[i] ? slot : -1,
    gate: ((gates[i] as number) / divisor) * (router.scale ?? 1),
  }));
}

/** The gate weight that a slot has when it is chosen, of routers whose gate weights do not depend on one another. */
export function gateIfChosen(logit: number, { order, normalize, scale = 1 }: RouterSpec): number {
  if (normalize || (order !== "sigmoid-topk" && order !== "topk-sigmoid"))
    throw new Error(`gate weights of ${order} depend on which experts are chosen together`);
  return scale * sigmoid(logit);
}

/** Which choices run under the rule, by gate weights before they are divided; ties are in favour of the first. */
function runningChoices(gates: Vector, rule: SkipRule | undefined): boolean[] {
  if (!rule) return gates.map(() => true);
  const most = Math.max(...gates);
  const order = best(range(0, gates.length), gates, gates.length);
  return gates.map((gate, i) => {
    const rank = order.indexOf(i);
    if (rank === 0) return true;
    if (rule.rule === "ratio") return gate >= rule.threshold * most;
    const before = order.slice(0, rank).map((choice) => gates[choice] as number);
    return total(before) < rule.threshold * total(gates);
  });
}

function divisorOf(gates: Vector, { normalize }: RouterSpec): number {
  if (!normalize) return 1;
  const norm = total(gates.map((gate) => Math.abs(gate) ** normalize.power)) ** (1 / normalize.power);
  return Math.max(norm, normalize.least ?? norm) + (normalize.epsilon ?? 0);
}

/** Slots of the best groups, by the selection scores of what is left of them. */
function allowedSlots(
  selection: Vector,
  kept: readonly number[],
  { groups }: RouterSpec,
  experts: number,
): number[] {
  const slots = range(0, kept.length);
  if (!groups) return slots;
  const groupOf = (slot: number) => Math.floor(((kept[slot] as number) * groups.count) / experts);
  const worth = range(0, groups.count).map((group) => {
    const members = slots.filter((slot) => groupOf(slot) === group).map((slot) => selection[slot] as number);
    const sorted = members.sort((a, b) => b - a).slice(0, groups.score === "top2" ? 2 : 1);
    return sorted.length > 0 ? total(sorted) : Number.NEGATIVE_INFINITY;
  });
  const winners = best(range(0, groups.count), worth, groups.keep);
  return slots.filter((slot) => winners.includes(groupOf(slot)));
}

/** Algorithm of SparseMixer-v2 at inference, arXiv 2409.12136: one expert after the other. */
function mixSparsely(logits: Vector, kept: readonly number[], topK: number, jitter: number) {
  let left = range(0, kept.length);
  const logit = (slot: number) => logits[kept[slot] as number] as number;
  return range(0, topK).map(() => {
    const [slot] = best(left, range(0, kept.length).map(logit), 1) as [number];
    const most = logit(slot);
    const near = left.filter((other) => {
      const scale = Math.max(Math.abs(logit(other)), most);
      return (most - logit(other)) / scale <= 2 * jitter;
    });
    left = left.filter((other) => other !== slot);
    return { slot, gate: 1 / total(near.map((other) => Math.exp(logit(other) - most))) };
  });
}

/** The `count` candidates with the largest values; ties go to the lower one. */
function best(candidates: readonly number[], values: Vector, count: number): number[] {
  const order = [...candidates].sort((a, b) => (values[b] as number) - (values[a] as number) || a - b);
  return order.slice(0, count);
}
