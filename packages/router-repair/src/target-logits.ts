import type { RouterSpec } from "@coppice/core";
import type { Choice, GateRange } from "./best-gates.js";

/** By how much a slot that is not to be chosen is to stay below those that are, in logits. */
const margin = 0.2;

/** Keeps scores away from where their logits are infinite. */
const edge = 1e-4;

/**
 * The router logits nearest to the present ones with which a router chooses given slots with given gate weights a. With s
 * the factor on all gate weights and C the chosen:
 *
 * - gate weights that are shares of a softmax (`softmax-topk` that divides, `topk-softmax`): z_i = ln a_i + v in C, the
 *   same for every L_p norm; v, which changes nothing, is the mean over C of present z_i - ln a_i
 * - `softmax-topk` that does not divide: the softmax is a_i / s in C; the other slots share 1 - Σ_C a_i / s as they do now
 * - `sigmoid-topk` that divides: sigmoids are proportional to a in C, logits have the mean over C that they have now; that does
 *   not divide: sigmoids are a_i / s
 * - `sparsemixer`: with both chosen slots i, j alone within tolerance, z_i - z_j = logit a_i; the best of the others is
 *   logit a_j below z_j
 *
 * Slots outside of C are lowered, where they have to be, to `margin` below the lowest selection score of C.
 * @param logits present ones of the token, [slots]
 * @param correction [slots]
 * @param out [slots]
 */
export function targetLogits(
  { order }: RouterSpec,
  range: GateRange,
  { chosen, gates }: Choice,
  logits: Float32Array,
  correction: Float32Array | undefined,
  out: Float64Array,
): void {
  out.set(logits);
  const set = (values: readonly number[]) =>
    chosen.forEach((slot, i) => {
      out[slot] = values[i] as number;
    });
  const present = chosen.map((slot) => logits[slot] as number);
  let below = margin;
  if (order === "sigmoid-topk") {
    const unit = range.kind === "each" ? 1 / range.total : proportion(gates, present);
    set(Array.from(gates, (gate) => logit(gate * unit)));
  } else if (order === "sparsemixer") {
    const first = (present[0] as number) >= (present[1] as number) ? 0 : 1;
    const middle = ((present[0] as number) + (present[1] as number)) / 2;
    const half = Math.max(margin, logit(gates[first] as number)) / 2;
    set(present.map((_, i) => middle + (i === first ? half : -half)));
    below = Math.max(margin, logit(gates[1 - first] as number));
  } else if (range.kind === "each" && order === "softmax-topk") {
    const shares = Array.from(gates, (gate) => gate / range.total);
    const rest = Math.max(edge, 1 - shares.reduce((total, share) => total + share, 0));
    const most = present.reduce((a, b) => Math.max(a, b));
    const others = out.reduce(
      (sum, z, slot) => (chosen.includes(slot) ? sum : sum + Math.exp(z - most)),
      edge,
    );
    const lift = Math.log(rest / others) - most;
    for (let slot = 0; slot < out.length; slot++) out[slot] = (out[slot] as number) + lift;
    set(shares.map(Math.log));
    const shift = out.reduce((sum, z, slot) => sum + (logits[slot] as number) - z, 0) / out.length;
    for (let slot = 0; slot < out.length; slot++) out[slot] = (out[slot] as number) + shift;
  } else {
    const logs = Array.from(gates, Math.log);
    const shift = logs.reduce((sum, log, i) => sum + (present[i] as number) - log, 0) / logs.length;
    set(logs.map((log) => log + shift));
  }
  lowerOthers(order, chosen, below, correction, out);
}

/** The factor on gate weights with which the logits of the products have the mean of `present`, by bisection. */
function proportion(gates: Float64Array, present: readonly number[]): number {
  const wanted = present.reduce((sum, z) => sum + z, 0);
  let [low, high] = [0, 1 / gates.reduce((a, b) => Math.max(a, b))];
  for (let i = 0; i < 50; i++) {
    const middle = (low + high) / 2;
    if (gates.reduce((sum, gate) => sum + logit(gate * middle), 0) < wanted) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

function lowerOthers(
  order: RouterSpec["order"],
  chosen: readonly number[],
  below: number,
  correction: Float32Array | undefined,
  out: Float64Array,
): void {
  const lowest = Math.min(...chosen.map((slot) => out[slot] as number));
  const most = out.reduce((a, b) => Math.max(a, b));
  const scale = most + Math.log(out.reduce((sum, z) => sum + Math.exp(z - most), 0));
  const scoreOf = (slot: number) =>
    (order === "sigmoid-topk" ? sigmoid(out[slot] as number) : Math.exp((out[slot] as number) - scale)) +
    (correction?.[slot] ?? 0);
  const bar = correction ? Math.min(...chosen.map(scoreOf)) : 0;
  for (let slot = 0; slot < out.length; slot++) {
    if (chosen.includes(slot)) continue;
    let limit = lowest;
    if (correction) {
      const score = bar - (correction[slot] as number);
      limit = order === "sigmoid-topk" ? logit(score) : Math.log(Math.max(edge, score)) + scale;
    }
    out[slot] = Math.min(out[slot] as number, limit - below);
  }
}

function sigmoid(value: number): number {
  return 1 / (1 + Math.exp(-value));
}

/** Inverse of the sigmoid, of values that are kept away from 0 and 1. */
function logit(value: number): number {
  const inside = Math.min(1 - edge, Math.max(edge, value));
  return Math.log(inside / (1 - inside));
}
