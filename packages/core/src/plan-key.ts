import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import { type MoeModel, moeLayers, type RouterSpec } from "./model.js";
import { packBfloat16, packFloats, unpackBfloat16, unpackFloats } from "./packed-floats.js";
import type { LayerPlan, Plan, RouterRows, SkipRule, UnitSource } from "./plan.js";
import { skipRuleOf } from "./skip-experts.js";

/**
 * The one form of all layer plans that compute the same function: slots sorted by their expert, identity
 * merges, identity router maps and unchanged top-k left out.
 *
 * Slot order carries no meaning because permuting slots permutes router rows and experts together.
 */
export function canonicalLayer(plan: LayerPlan, router: RouterSpec): LayerPlan {
  const order = plan.experts.map((_, slot) => slot);
  order.sort((a, b) => (plan.experts[a] as number) - (plan.experts[b] as number));
  const experts = order.map((slot) => plan.experts[slot] as number);
  const merge = rowsUnlessIdentity(plan.merge, order, experts);
  // A router map always divides by the chosen sum, so the identity map changes a router that does not.
  const dividesBySum = router.normalize?.power === 1 && !router.normalize.least && !router.normalize.epsilon;
  const routerMap = dividesBySum
    ? rowsUnlessIdentity(plan.routerMap, order, experts)
    : sortRows(plan.routerMap, order);
  const down = plan.down === undefined ? undefined : sortDown(plan.down, order);
  return {
    layer: plan.layer,
    experts,
    ...(merge && { merge }),
    ...(routerMap && { routerMap }),
    ...(plan.units?.some((unit) => unit !== null) && { units: sortUnits(plan.units, order) }),
    ...(down !== undefined && { down }),
    ...(plan.router && { router: sortRouter(plan.router, order) }),
    ...(plan.topK !== undefined && plan.topK !== router.topK && { topK: plan.topK }),
    ...changedSkip(plan, router),
  };
}

/** True when a canonical layer plan changes nothing. */
export function isIdentityLayer(plan: LayerPlan, experts: number): boolean {
  const { layer: _, experts: kept, ...changes } = plan;
  return kept.length === experts && Object.keys(changes).length === 0;
}

/** Canonical form of a valid plan: canonical layers in order, layers that change nothing left out. */
export function canonicalPlan(plan: Plan, model: MoeModel): Plan {
  const specs = new Map(moeLayers(model).map((layer) => [layer.index, layer.feedForward]));
  const layers: LayerPlan[] = [];
  for (const entry of plan.layers) {
    const spec = specs.get(entry.layer);
    if (!spec) continue;
    const canonical = canonicalLayer(entry, spec.router);
    if (!isIdentityLayer(canonical, spec.experts.length)) layers.push(canonical);
  }
  layers.sort((a, b) => a.layer - b.layer);
  return { ...plan, layers };
}

/** Text that is equal exactly when two canonical layer plans are; cheap enough for every layer of a run. */
export function layerKey(plan: LayerPlan): string {
  const text = JSON.stringify([
    plan.layer,
    plan.experts,
    plan.merge ?? null,
    plan.routerMap ?? null,
    plan.topK ?? null,
    ...(plan.units || plan.router || plan.skip
      ? [plan.units ?? null, plan.router ?? null, plan.skip ?? null]
      : []),
  ]);
  // Megabytes, and base64 needs no quotes.
  return plan.down === undefined ? text : `${text}${plan.down}`;
}

/** Identity of what a plan computes: equal for all plans with the same canonical form, 32 hex digits. */
export function planKey(plan: Plan, model: MoeModel): string {
  const canonical = canonicalPlan(plan, model);
  const text = [canonical.model.fingerprint, ...canonical.layers.map(layerKey)].join("\n");
  return bytesToHex(sha256(utf8ToBytes(text))).slice(0, 32);
}

function sortRows(
  rows: readonly (readonly number[])[] | undefined,
  order: readonly number[],
): number[][] | undefined {
  // `+ 0` turns -0 into 0: JSON cannot tell them apart either.
  return rows && order.map((slot) => (rows[slot] as readonly number[]).map((value) => value + 0));
}

/** The plan's rule where it is another than the router's own; one that skips nothing in one form. */
function changedSkip(plan: LayerPlan, router: RouterSpec): Pick<LayerPlan, "skip"> {
  const text = (rule: SkipRule | undefined) =>
    rule && JSON.stringify([rule.rule, rule.threshold, rule.spare]);
  const skip = skipRuleOf(router, plan);
  if (text(skip) === text(skipRuleOf(router))) return {};
  return { skip: skip ?? { rule: "ratio", threshold: 0 } };
}

/** Units in slot order, factors that are all alike as one number. */
function sortUnits(
  units: readonly (readonly UnitSource[] | null)[],
  order: readonly number[],
): (UnitSource[] | null)[] {
  const factor = (values: number | readonly number[]) =>
    typeof values !== "number" && values.every((value) => value === values[0]) ? (values[0] ?? 0) : values;
  return order.map((slot) => {
    const sources = units[slot] ?? null;
    return (
      sources?.map(({ expert, to, rows, columns }) => ({
        expert,
        to,
        rows: factor(rows),
        columns: factor(columns),
      })) ?? null
    );
  });
}

/** Deltas in slot order; undefined where all are 0. */
function sortDown(down: string, order: readonly number[]): string | undefined {
  if (/^A*=*$/.test(down)) return undefined;
  if (order.every((slot, i) => slot === i)) return down;
  return packBfloat16(sortedSlots(unpackBfloat16(down), order));
}

function sortRouter({ weight, bias, correction }: RouterRows, order: readonly number[]): RouterRows {
  const ascending = order.every((slot, i) => slot === i);
  if (ascending) return { weight, ...(bias && { bias }), ...(correction && { correction }) };
  return {
    weight: packFloats(sortedSlots(unpackFloats(weight), order)),
    ...(bias && { bias: order.map((slot) => bias[slot] as number) }),
    ...(correction && { correction: order.map((slot) => correction[slot] as number) }),
  };
}

/** @param values [slots, ...] */
function sortedSlots(values: Float32Array, order: readonly number[]): Float32Array {
  const size = values.length / order.length;
  const sorted = new Float32Array(values.length);
  order.forEach((slot, i) => {
    sorted.set(values.subarray(slot * size, (slot + 1) * size), i * size);
  });
  return sorted;
}

function rowsUnlessIdentity(
  rows: readonly (readonly number[])[] | undefined,
  order: readonly number[],
  experts: readonly number[],
): number[][] | undefined {
  const sorted = sortRows(rows, order);
  const identity = sorted?.every((row, slot) =>
    row.every((value, column) => value === (column === experts[slot] ? 1 : 0)),
  );
  return identity ? undefined : sorted;
}
