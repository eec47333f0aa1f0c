import { createPlan, type LayerPlan, type MoeModel, moeLayers, type Plan } from "@coppice/core";
import fc from "fast-check";

const coefficient = fc.constantFrom(0, -0, 1, -1, 0.5, -0.25, 1.125, 1e6, 3e-7);

function layerPlan(layer: number, experts: number, topK: number): fc.Arbitrary<LayerPlan> {
  const all = Array.from({ length: experts }, (_, i) => i);
  return fc
    .tuple(
      fc.shuffledSubarray(all, { minLength: topK }),
      fc.option(fc.integer({ min: 1, max: topK }), { nil: undefined }),
      fc.constantFrom("none", "identity", "free"),
      fc.constantFrom("none", "identity", "free"),
    )
    .chain(([kept, ownTopK, mergeKind, mapKind]) => {
      const rows = (kind: string) => {
        const identity = kept.map((expert) => all.map((j) => (j === expert ? 1 : 0)));
        const free = fc.array(fc.array(coefficient, { minLength: experts, maxLength: experts }), {
          minLength: kept.length,
          maxLength: kept.length,
        });
        if (kind === "none") return fc.constant(undefined);
        return kind === "identity" ? fc.constant(identity) : free;
      };
      return fc.tuple(rows(mergeKind), rows(mapKind)).map(([merge, routerMap]) => ({
        layer,
        experts: kept,
        ...(merge && { merge }),
        ...(routerMap && { routerMap }),
        ...(ownTopK !== undefined && { topK: ownTopK }),
      }));
    });
}

/** Any valid plan for the model, in any order, with layers left out. */
export function anyPlan(model: MoeModel): fc.Arbitrary<Plan> {
  const layers = moeLayers(model).map(({ index, feedForward: { experts, router } }) =>
    layerPlan(index, experts.length, router.topK),
  );
  return fc
    .tuple(...layers)
    .chain((all) => fc.shuffledSubarray(all as LayerPlan[]))
    .map((chosen) => createPlan(model, chosen));
}

/** The same plan with the slots of every layer in another order. */
export function permuted(plan: Plan, orderOf: (slots: number) => number[]): Plan {
  return {
    ...plan,
    layers: plan.layers.map((layer) => {
      const order = orderOf(layer.experts.length);
      const pick = <T>(items: readonly T[]) => order.map((slot) => items[slot] as T);
      return {
        ...layer,
        experts: pick(layer.experts),
        ...(layer.merge && { merge: pick(layer.merge) }),
        ...(layer.routerMap && { routerMap: pick(layer.routerMap) }),
      };
    }),
  };
}
