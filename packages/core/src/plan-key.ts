import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import { type MoeModel, moeLayers, type RouterSpec } from "./model.js";
import type { LayerPlan, Plan } from "./plan.js";

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
  return {
    layer: plan.layer,
    experts,
    ...(merge && { merge }),
    ...(routerMap && { routerMap }),
    ...(plan.topK !== undefined && plan.topK !== router.topK && { topK: plan.topK }),
  };
}

/** True when a canonical layer plan changes nothing. */
export function isIdentityLayer(plan: LayerPlan, experts: number): boolean {
  return plan.experts.length === experts && !plan.merge && !plan.routerMap && plan.topK === undefined;
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
  return JSON.stringify([
    plan.layer,
    plan.experts,
    plan.merge ?? null,
    plan.routerMap ?? null,
    plan.topK ?? null,
  ]);
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
