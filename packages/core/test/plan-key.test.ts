import {
  canonicalLayer,
  canonicalPlan,
  createPlan,
  layerKey,
  type Plan,
  packBfloat16,
  packFloats,
  parsePlan,
  planKey,
  Rng,
  type SkipRule,
  type UnitSource,
} from "@coppice/core";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { anyPlan, permuted } from "./plan-arbitrary.js";
import { tinyModel } from "./tiny-model.js";

const { model } = tinyModel();
const identity = (experts: readonly number[], total = 5) =>
  experts.map((expert) => Array.from({ length: total }, (_, j) => (j === expert ? 1 : 0)));
const units = (changes: Partial<UnitSource> = {}) => [
  { expert: 0, to: [0, 1, 2], rows: 1, columns: 1, ...changes },
];
const plan = (layer: Omit<Plan["layers"][number], "layer">) => createPlan(model, [{ layer: 0, ...layer }]);
const key = (layer: Omit<Plan["layers"][number], "layer">) => planKey(plan(layer), model);

describe("planKey", () => {
  test("does not change when slots change places", () => {
    fc.assert(
      fc.property(anyPlan(model), fc.integer(), (original, seed) => {
        const rng = Rng.fromSeed(seed);
        const other = permuted(original, (slots) => rng.sample(slots, slots));
        expect(planKey(other, model)).toBe(planKey(original, model));
      }),
      { numRuns: 300 },
    );
  });

  test("does not change when the plan is made canonical, written or put in another order of layers", () => {
    fc.assert(
      fc.property(anyPlan(model), (original) => {
        const wanted = planKey(original, model);
        const canonical = canonicalPlan(original, model);
        expect(canonicalPlan(canonical, model)).toEqual(canonical);
        expect(planKey(canonical, model)).toBe(wanted);
        expect(planKey(parsePlan(JSON.parse(JSON.stringify(original)), model), model)).toBe(wanted);
        expect(planKey({ ...original, layers: original.layers.toReversed() }, model)).toBe(wanted);
      }),
    );
  });

  test("differs as soon as one coefficient, expert or top-k does", () => {
    const free = [
      [1, 0.5, 0, 0, 0],
      [0, 0, 0, 0, 1],
      [0, 0, 1, 0, 0],
    ];
    const changed = free.map((row) => row.with(0, (row[0] as number) + 2 ** -40));
    const keys = [
      key({ experts: [0, 1, 2] }),
      key({ experts: [0, 1, 3] }),
      key({ experts: [0, 1] }),
      key({ experts: [0, 1, 2], topK: 1 }),
      key({ experts: [0, 1, 2], merge: free }),
      key({ experts: [0, 1, 2], merge: changed }),
      key({ experts: [0, 1, 2], routerMap: free }),
      key({ experts: [0, 1, 2], merge: free, routerMap: free }),
      key({ experts: [0, 1, 2], units: [units(), null, null] }),
      key({ experts: [0, 1, 2], units: [null, units(), null] }),
      key({ experts: [0, 1, 2], units: [units({ to: [0, 1, -1] }), null, null] }),
      key({ experts: [0, 1, 2], units: [units({ columns: [1, 1, 0.5] }), null, null] }),
      key({ experts: [0, 1, 2], down: packBfloat16(new Float32Array(72).fill(1e-30)) }),
      key({ experts: [0, 1, 2], down: packBfloat16(new Float32Array(72).fill(1e-30).with(71, 2e-30)) }),
      key({ experts: [0, 1, 2], router: { weight: packFloats(new Float32Array(24)) } }),
      key({ experts: [0, 1, 2], router: { weight: packFloats(new Float32Array(24).fill(1e-30)) } }),
      key({ experts: [0, 1, 2], skip: { rule: "ratio", threshold: 0.5 } }),
      key({ experts: [0, 1, 2], skip: { rule: "top-p", threshold: 0.5 } }),
      key({ experts: [0, 1, 2], skip: { rule: "ratio", threshold: 0.5, spare: 0.1 } }),
      planKey(createPlan(model, [{ layer: 2, experts: [0, 1, 2] }]), model),
      planKey(createPlan({ ...model, fingerprint: "other" }, [{ layer: 0, experts: [0, 1, 2] }]), model),
    ];
    expect(new Set(keys).size).toBe(keys.length);
    for (const text of keys) expect(text).toMatch(/^[0-9a-f]{32}$/);
  });

  test("is that of the empty plan for plans that change nothing", () => {
    const nothing = planKey(createPlan(model), model);
    const all = [3, 1, 0, 2, 4];
    expect(key({ experts: all })).toBe(nothing);
    expect(key({ experts: all, topK: 2 })).toBe(nothing);
    expect(key({ experts: all, merge: identity(all) })).toBe(nothing);
    expect(key({ experts: all, routerMap: identity(all) })).toBe(nothing);
    expect(key({ experts: all, units: all.map(() => null) })).toBe(nothing);
    expect(key({ experts: all, down: packBfloat16(new Float32Array(120)) })).toBe(nothing);
    expect(key({ experts: all, skip: { rule: "ratio", threshold: 0 } })).toBe(nothing);
    expect(key({ experts: all, topK: 1 })).not.toBe(nothing);
    expect(key({ experts: all, merge: identity(all.toReversed()) })).not.toBe(nothing);
  });

  test("knows a rule by which tokens skip experts from the router's own", () => {
    const own = { rule: "ratio", threshold: 0.5 } as const;
    const skipping = {
      ...model,
      layers: model.layers.map((layer) =>
        layer.feedForward.kind === "moe"
          ? {
              ...layer,
              feedForward: { ...layer.feedForward, router: { ...layer.feedForward.router, skip: own } },
            }
          : layer,
      ),
    };
    const experts = [0, 1, 2, 3, 4];
    const keyOf = (skip: SkipRule) => planKey(createPlan(skipping, [{ layer: 0, experts, skip }]), skipping);
    const nothing = planKey(createPlan(skipping), skipping);
    expect(keyOf(own)).toBe(nothing);
    const never = keyOf({ rule: "ratio", threshold: 0 });
    expect(never).not.toBe(nothing);
    expect(keyOf({ rule: "ratio", threshold: 0, spare: 0.5 })).toBe(never);
    const map = [{ layer: 0, experts, routerMap: identity(experts) }];
    expect(() => parsePlan(createPlan(skipping, map), skipping)).toThrow(/routerMap/);
  });

  test("is the same for one factor and for the same factor of every unit", () => {
    const one = key({ experts: [0, 1], units: [units({ rows: 0.5 }), null] });
    expect(key({ experts: [0, 1], units: [units({ rows: [0.5, 0.5, 0.5] }), null] })).toBe(one);
  });

  test("sees no difference between 0 and -0", () => {
    const negative = identity([0, 1]).map((row) => row.map((value) => (value === 0 ? -0 : value)));
    expect(key({ experts: [0, 1], merge: negative })).toBe(key({ experts: [0, 1] }));
    const shifted = (zero: number) => [
      [1, 0.5, zero, 0, 0],
      [0, 1, zero, 0, 0],
    ];
    expect(canonicalPlan(plan({ experts: [0, 1], merge: shifted(-0) }), model)).toEqual(
      canonicalPlan(plan({ experts: [0, 1], merge: shifted(0) }), model),
    );
    expect(key({ experts: [0, 1], merge: shifted(-0) })).toBe(key({ experts: [0, 1], merge: shifted(0) }));
    expect(key({ experts: [0, 1], routerMap: shifted(-0) })).toBe(
      key({ experts: [0, 1], routerMap: shifted(0) }),
    );
  });

  test("keeps an identity router map where gates are not normalised, because it divides", () => {
    const { model: raw } = tinyModel({ normalize: false });
    const experts = [0, 1, 2, 3, 4];
    const mapped = createPlan(raw, [{ layer: 0, experts, routerMap: identity(experts) }]);
    expect(planKey(mapped, raw)).not.toBe(planKey(createPlan(raw), raw));
    const reordered = permuted(mapped, () => [4, 2, 0, 1, 3]);
    expect(planKey(reordered, raw)).toBe(planKey(mapped, raw));
  });

  test("does not follow what the caller does to the plan's arrays later", () => {
    const merge = [
      [1, 0.5, 0, 0, 0],
      [0, 1, 0, 0, 0],
    ];
    const original = plan({ experts: [1, 0], merge });
    const canonical = canonicalPlan(original, model);
    const before = JSON.stringify(canonical);
    (merge[0] as number[])[0] = 9;
    expect(JSON.stringify(canonical)).toBe(before);
  });
});

test("layerKey is equal exactly for equal canonical layers", () => {
  const router = { ...tinyRouter(), normalize: { power: 1 } };
  const a = canonicalLayer({ layer: 0, experts: [2, 0] }, router);
  const b = canonicalLayer({ layer: 0, experts: [0, 2], merge: identity([0, 2]) }, router);
  expect(layerKey(a)).toBe(layerKey(b));
  expect(layerKey(a)).not.toBe(layerKey({ ...a, layer: 2 }));
});

function tinyRouter() {
  const [layer] = model.layers;
  if (layer?.feedForward.kind !== "moe") throw new Error("layer 0 has experts");
  return layer.feedForward.router;
}
