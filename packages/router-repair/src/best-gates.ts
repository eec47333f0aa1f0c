import type { RouterSpec } from "@coppice/core";

/** Which gate weights a router can give the slots that it chose. */
export interface GateRange {
  /** `sum`: they add up to `total`; `norm`: their L_p norm is `total`; `each`: every one is below it by itself. */
  readonly kind: "sum" | "norm" | "each";
  readonly total: number;
  /** p of the norm. */
  readonly power: number;
  /** True when those of `each` may not add up to more than `total` either. */
  readonly shared: boolean;
}

export function gateRange({ order, normalize, scale = 1 }: RouterSpec): GateRange {
  const power = normalize?.power ?? 1;
  const divides = normalize !== undefined || order === "topk-softmax";
  return {
    kind: divides ? (power === 1 ? "sum" : "norm") : "each",
    total: scale,
    power,
    shared: order === "softmax-topk",
  };
}

/** Smallest share of the total that a chosen slot is to get: logits grow without limit towards 0. */
const least = 0.002;
const sweeps = 30;

/** One token's `e(a) = c - 2 bᵀa + aᵀ H a` without c (`BlockView`). */
export interface TokenQuadratic {
  /** H, [n, n] */
  readonly grams: Float64Array;
  /** b, [n] */
  readonly wanted: Float64Array;
}

/**
 * The gate weights of the given slots within the router's range that put out nearest to what is wanted: coordinate
 * descent, by pairs where the sum or norm is fixed. Each step is exact, but for an L_p norm, along which pairs are searched on
 * a grid.
 * @param chosen slots, all different
 * @param gates [chosen], where the descent starts; replaced by what is found
 * @returns e(a) - c
 */
export function fitGates(
  { grams, wanted }: TokenQuadratic,
  chosen: readonly number[],
  range: GateRange,
  gates: Float64Array,
): number {
  const slots = wanted.length;
  const count = chosen.length;
  const floor = least * range.total;
  const gram = (i: number, j: number) =>
    grams[(chosen[i] as number) * slots + (chosen[j] as number)] as number;
  /** Half of the fall of e along a coordinate. */
  const slope = (i: number) => {
    let sum = wanted[chosen[i] as number] as number;
    for (let j = 0; j < count; j++) sum -= gram(i, j) * (gates[j] as number);
    return sum;
  };
  start(gates, range, floor);
  for (let sweep = 0; sweep < sweeps; sweep++) {
    let moved = 0;
    const move = (i: number, step: number) => {
      gates[i] = (gates[i] as number) + step;
      moved = Math.max(moved, Math.abs(step));
    };
    for (let i = 0; i < count; i++) {
      if (range.kind === "norm") {
        for (let j = 0; j < i; j++) {
          const a = alongNorm(gates[i] as number, gates[j] as number, range.power, floor, (da, db) => {
            const linear = da * slope(i) + db * slope(j);
            return da * da * gram(i, i) + 2 * da * db * gram(i, j) + db * db * gram(j, j) - 2 * linear;
          });
          move(j, a.second - (gates[j] as number));
          move(i, a.first - (gates[i] as number));
        }
        continue;
      }
      if (range.kind === "sum") {
        for (let j = 0; j < i; j++) {
          const curve = gram(i, i) - 2 * gram(i, j) + gram(j, j);
          if (!(curve > 0)) continue;
          const step = (slope(i) - slope(j)) / curve;
          const clipped = Math.max(
            floor - (gates[i] as number),
            Math.min((gates[j] as number) - floor, step),
          );
          move(i, clipped);
          move(j, -clipped);
        }
        continue;
      }
      const curve = gram(i, i);
      if (!(curve > 0)) continue;
      let most = Number.POSITIVE_INFINITY;
      if (range.kind === "each") {
        most = range.total - floor;
        if (range.shared) for (let j = 0; j < count; j++) if (j !== i) most -= gates[j] as number;
      }
      const wish = (gates[i] as number) + slope(i) / curve;
      move(i, Math.max(floor, Math.min(most, wish)) - (gates[i] as number));
    }
    if (moved < 1e-6 * range.total) break;
  }
  let error = 0;
  for (let i = 0; i < count; i++) {
    error -= (gates[i] as number) * (slope(i) + (wanted[chosen[i] as number] as number));
  }
  return error;
}

/** Points of a grid between the ends of what a pair can share out, then around the best. */
const gridPoints = 16;

/**
 * The two gate weights with the same L_p norm as `a` and `b` at which the error is least.
 * @param change of the error when they change by so much
 */
function alongNorm(
  a: number,
  b: number,
  power: number,
  floor: number,
  change: (da: number, db: number) => number,
): { first: number; second: number } {
  const total = a ** power + b ** power;
  let best = { first: a, second: b, error: 0, at: a ** power };
  let [from, to] = [floor ** power, total - floor ** power];
  for (let round = 0; round < 4 && to > from; round++) {
    const step = (to - from) / gridPoints;
    for (let i = 0; i <= gridPoints; i++) {
      const at = from + i * step;
      const [first, second] = [at ** (1 / power), Math.max(0, total - at) ** (1 / power)];
      const error = change(first - a, second - b);
      if (error < best.error) best = { first, second, error, at };
    }
    [from, to] = [Math.max(from, best.at - step), Math.min(to, best.at + step)];
  }
  return best;
}

/** Moves gate weights into the range. */
function start(gates: Float64Array, range: GateRange, floor: number): void {
  for (let i = 0; i < gates.length; i++) gates[i] = Math.max(floor, gates[i] as number);
  if (range.kind === "norm") scaleToNorm(gates, range);
  const sum = gates.reduce((total, gate) => total + gate, 0);
  const most = range.kind === "sum" ? range.total : range.total - floor;
  if (range.kind === "norm" || (range.kind === "each" && !(range.shared && sum > most))) return;
  // Above the floor everything is scaled alike.
  const spare = sum - floor * gates.length;
  const room = most - floor * gates.length;
  for (let i = 0; i < gates.length; i++) {
    gates[i] = floor + (spare > 0 ? (((gates[i] as number) - floor) * room) / spare : room / gates.length);
  }
}

function scaleToNorm(gates: Float64Array, { power, total }: GateRange): void {
  const norm = gates.reduce((sum, gate) => sum + gate ** power, 0) ** (1 / power);
  for (let i = 0; i < gates.length; i++) gates[i] = ((gates[i] as number) * total) / norm;
}

/** Slots and their gate weights. */
export interface Choice {
  readonly chosen: readonly number[];
  readonly gates: Float64Array;
  /** e(a) - c */
  readonly error: number;
}

/** Slots outside of a choice that are tried in it: those along which e falls most. */
const candidates = 4;

/**
 * A choice of slots with gate weights that no exchange of one slot makes better, starting from that of the router.
 * @param allowed false for choices that the router's groups do not allow
 */
export function findChoice(
  token: TokenQuadratic,
  chosen: readonly number[],
  gates: ArrayLike<number>,
  range: GateRange,
  allowed: (chosen: readonly number[]) => boolean,
): Choice {
  const { grams, wanted } = token;
  const slots = wanted.length;
  const fitted = (slotsOf: readonly number[], from: ArrayLike<number>): Choice => {
    const own = Float64Array.from(from);
    return { chosen: slotsOf, error: fitGates(token, slotsOf, range, own), gates: own };
  };
  let best = fitted(chosen, gates);
  for (let round = 0; round < chosen.length; round++) {
    const promise = new Map<number, number>();
    for (let slot = 0; slot < slots; slot++) {
      if (best.chosen.includes(slot)) continue;
      let slope = wanted[slot] as number;
      best.chosen.forEach((other, i) => {
        slope -= (grams[slot * slots + other] as number) * (best.gates[i] as number);
      });
      const curve = grams[slot * slots + slot] as number;
      if (curve > 0) promise.set(slot, slope / Math.sqrt(curve));
    }
    const tried = [...promise.keys()].sort(
      (a, b) => (promise.get(b) as number) - (promise.get(a) as number) || a - b,
    );
    let better: Choice | undefined;
    for (const slot of tried.slice(0, candidates)) {
      for (let i = 0; i < best.chosen.length; i++) {
        const exchanged = best.chosen.with(i, slot);
        if (!allowed(exchanged)) continue;
        const found = fitted(exchanged, best.gates);
        if (found.error < (better ?? best).error) better = found;
      }
    }
    if (!better) break;
    best = better;
  }
  return best;
}
