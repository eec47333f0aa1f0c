import {
  createPlan,
  type LayerPlan,
  type MoeModel,
  type MoeSpec,
  moeLayers,
  type Plan,
  packBfloat16,
  packFloats,
  type SkipRule,
  type UnitSource,
  unpackBfloat16,
  unpackFloats,
} from "@coppice/core";
import fc from "fast-check";

const coefficient = fc.constantFrom(0, -0, 1, -1, 0.5, -0.25, 1.125, 1e6, 3e-7);

function layerPlan(layer: number, { experts, router }: MoeSpec): fc.Arbitrary<LayerPlan> {
  const { topK } = router;
  const all = Array.from(experts.keys());
  return fc
    .tuple(
      fc.shuffledSubarray(all, { minLength: topK }),
      fc.option(fc.integer({ min: 1, max: topK }), { nil: undefined }),
      fc.constantFrom("none", "identity", "free"),
      fc.constantFrom("none", "identity", "free"),
      fc.option(anySkip, { nil: undefined }),
    )
    .chain(([kept, ownTopK, mergeKind, mapKind, skip]) => {
      const rows = (kind: string) => {
        const identity = kept.map((expert) => all.map((j) => (j === expert ? 1 : 0)));
        const free = fc.array(
          fc.array(coefficient, { minLength: experts.length, maxLength: experts.length }),
          {
            minLength: kept.length,
            maxLength: kept.length,
          },
        );
        if (kind === "none") return fc.constant(undefined);
        return kind === "identity" ? fc.constant(identity) : free;
      };
      const perSlot = <T>(value: fc.Arbitrary<T>) =>
        fc.option(fc.array(value, { minLength: kept.length, maxLength: kept.length }), { nil: undefined });
      const units = perSlot(fc.option(anySources(all, experts[0]?.width ?? 0)));
      const hidden = router.weight.shape[1] as number;
      const list = (length: number) => fc.array(coefficient, { minLength: length, maxLength: length });
      const values = perSlot(list(hidden));
      const deltas = perSlot(list(hidden * (experts[0]?.width ?? 0)));
      return fc
        .tuple(rows(mergeKind), rows(mapKind), units, values, deltas)
        .map(([merge, routerMap, sources, weight, down]) => ({
          layer,
          experts: kept,
          ...(merge && { merge }),
          ...(routerMap && { routerMap }),
          ...(sources && { units: sources }),
          ...(down && { down: packBfloat16(Float32Array.from(down.flat())) }),
          ...(weight && !routerMap && { router: { weight: packFloats(Float32Array.from(weight.flat())) } }),
          ...(ownTopK !== undefined && { topK: ownTopK }),
          ...(skip && !routerMap && { skip }),
        }));
    });
}

const anySkip: fc.Arbitrary<SkipRule> = fc.record({
  rule: fc.constantFrom("ratio" as const, "top-p" as const),
  threshold: fc.constantFrom(0, 0.25, 1),
});

function anySources(experts: readonly number[], width: number): fc.Arbitrary<UnitSource[]> {
  const list = <T>(value: fc.Arbitrary<T>) => fc.array(value, { minLength: width, maxLength: width });
  const factor = fc.oneof(coefficient, list(coefficient));
  return fc.subarray([...experts], { minLength: 1 }).chain((chosen) =>
    fc.tuple(
      ...chosen.map((expert) =>
        fc.record({
          expert: fc.constant(expert),
          to: list(fc.integer({ min: -1, max: width - 1 })),
          rows: factor,
          columns: factor,
        }),
      ),
    ),
  );
}

/** Any valid plan for the model, in any order, with layers left out. */
export function anyPlan(model: MoeModel): fc.Arbitrary<Plan> {
  const layers = moeLayers(model).map(({ index, feedForward }) => layerPlan(index, feedForward));
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
        ...(layer.units && { units: pick(layer.units) }),
        ...(layer.router && {
          router: { weight: packFloats(permutedRows(unpackFloats(layer.router.weight), order)) },
        }),
        ...(layer.down && { down: packBfloat16(permutedRows(unpackBfloat16(layer.down), order)) }),
      };
    }),
  };
}

function permutedRows(values: Float32Array, order: readonly number[]): Float32Array {
  const size = values.length / order.length;
  return Float32Array.from(order.flatMap((slot) => [...values.subarray(slot * size, (slot + 1) * size)]));
}
