import {
  type LayerPlan,
  Rng,
  type RouterSpec,
  routeTokens,
  type SkipRule,
  skipExperts,
  sparedTokens,
  tokenImportance,
} from "@coppice/core";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { tinyModel } from "./tiny-model.js";

function router(changes: Partial<RouterSpec>): RouterSpec {
  const [layer] = tinyModel({ experts: 6, normalize: false }).model.layers;
  if (layer?.feedForward.kind !== "moe") throw new Error("layer 0 has experts");
  return { ...layer.feedForward.router, topK: 4, ...changes };
}

/** Which of the gates stay, from the definitions. */
function slowKept(gates: number[], { rule, threshold }: SkipRule): boolean[] {
  const order = gates.map((_, i) => i).sort((a, b) => (gates[b] as number) - (gates[a] as number) || a - b);
  const ranked = order.map((i) => gates[i] as number);
  const total = ranked.reduce((a, b) => a + b, 0);
  const kept = order.filter((_, rank) => {
    if (rank === 0) return true;
    if (rule === "ratio") return (ranked[rank] as number) >= threshold * (ranked[0] as number);
    return ranked.slice(0, rank).reduce((a, b) => a + b, 0) < threshold * total;
  });
  return gates.map((_, i) => kept.includes(i));
}

describe("skipExperts", () => {
  it("keeps what the definitions say, and always the largest", () => {
    const gate = fc.integer({ min: 0, max: 64 }).map((value) => value / 64);
    fc.assert(
      fc.property(
        fc.array(gate, { minLength: 1, maxLength: 8 }),
        fc.constantFrom("ratio" as const, "top-p" as const),
        fc.integer({ min: 0, max: 8 }).map((value) => value / 8),
        (values, rule, threshold) => {
          const gates = Float32Array.from(values);
          const slots = Int32Array.from(values.keys());
          skipExperts({ rule, threshold }, slots, gates);
          const kept = slowKept(values, { rule, threshold });
          expect([...slots]).toEqual(kept.map((stays, i) => (stays ? i : -1)));
          expect([...gates]).toEqual(kept.map((stays, i) => (stays ? values[i] : 0)));
          expect(kept.filter(Boolean).length).toBeGreaterThan(0);
        },
      ),
      { numRuns: 500 },
    );
  });
});

describe("routeTokens with a skip rule", () => {
  const rng = Rng.fromSeed(5);
  const tokens = 40;
  const logits = Float32Array.from({ length: tokens * 6 }, () => 2 * rng.normal());
  const plan = (skip: SkipRule): LayerPlan => ({ layer: 0, experts: [0, 1, 2, 3, 4, 5], skip });
  const orders: Record<string, Partial<RouterSpec>> = {
    "softmax, divided": { order: "softmax-topk", normalize: { power: 1 } },
    "softmax, not divided, scaled": { order: "softmax-topk", scale: 1.5 },
    "sigmoid, divided": { order: "sigmoid-topk", normalize: { power: 1, epsilon: 1e-20 }, scale: 2.5 },
    "softmax over the chosen": { order: "topk-softmax" },
    "divided by the L2 norm": { order: "softmax-topk", normalize: { power: 2 } },
    sparsemixer: { order: "sparsemixer", topK: 2, jitter: 0.5 },
  };
  for (const [name, changes] of Object.entries(orders)) {
    for (const rule of ["ratio", "top-p"] as const) {
      it(`${name}: ${rule} leaves the others as a smaller choice would`, () => {
        const spec = router(changes);
        const { normalize: _, scale: __, ...bare } = spec;
        const raw = routeTokens(logits, tokens, bare);
        const cut = routeTokens(logits, tokens, spec, { plan: plan({ rule, threshold: 0.6 }) });
        let skips = 0;
        for (let token = 0; token < tokens; token++) {
          const at = token * spec.topK;
          const gates = [...raw.gates.subarray(at, at + spec.topK)];
          const kept = slowKept(gates, { rule, threshold: 0.6 });
          skips += kept.filter((stays) => !stays).length;
          const left = gates.map((gate, i) => (kept[i] ? gate : 0));
          const sum = left.reduce((a, b) => a + b, 0);
          const norm = Math.sqrt(left.reduce((a, b) => a + b * b, 0));
          const divisor =
            spec.order === "topk-softmax" || spec.normalize?.power === 1 ? sum : spec.normalize ? norm : 1;
          for (const [i, gate] of left.entries()) {
            expect(cut.slots[at + i]).toBe(kept[i] ? raw.slots[at + i] : -1);
            expect(cut.gates[at + i]).toBeCloseTo((gate / divisor) * (spec.scale ?? 1), 5);
          }
        }
        expect(skips).toBeGreaterThan(0);
      });
    }
  }

  it("applies the router's own rule, in whose place a plan's comes", () => {
    const own = { rule: "ratio", threshold: 0.9 } as const;
    const spec = router({ normalize: { power: 1 } });
    const under = (rule?: SkipRule, skip?: SkipRule) =>
      routeTokens(logits, tokens, { ...spec, ...(skip && { skip }) }, rule && { plan: plan(rule) });
    expect(under(undefined, own)).toEqual(under(own));
    expect(under({ rule: "ratio", threshold: 0.5 }, own)).toEqual(under({ rule: "ratio", threshold: 0.5 }));
    expect(under({ rule: "ratio", threshold: 0 }, own)).toEqual(under());
    expect(under(own)).not.toEqual(under());
  });

  it("spares tokens", () => {
    const spec = router({ normalize: { power: 1 } });
    const spared = Uint8Array.from({ length: tokens }, (_, token) => token % 2);
    const rule = plan({ rule: "ratio", threshold: 0.9 });
    const cut = routeTokens(logits, tokens, spec, { plan: rule, spared });
    const full = routeTokens(logits, tokens, spec);
    for (let token = 0; token < tokens; token++) {
      const at = token * 4;
      const same = [...cut.slots.subarray(at, at + 4)].join() === [...full.slots.subarray(at, at + 4)].join();
      if (token % 2 === 1) expect(same).toBe(true);
    }
    expect(cut.slots.includes(-1)).toBe(true);
  });
});

describe("sparedTokens", () => {
  it("are the most important, at least one of those asked for", () => {
    expect([...sparedTokens(Float64Array.of(1, 5, 5, 2), 0.5)]).toEqual([0, 1, 1, 0]);
    expect([...sparedTokens(Float64Array.of(1, 5, 5, 2), 0.01)]).toEqual([0, 1, 0, 0]);
    expect([...sparedTokens(Float64Array.of(1, 5), 0)]).toEqual([0, 0]);
  });

  it("get their importance from the attention that they receive per later token, and from their input", () => {
    const inputs = Float32Array.of(1, -2, 0, 0.5, 3, 3);
    // Two heads and three tokens; columns of probabilities sum to what each token receives.
    const importance = tokenImportance([4.5, 1, 0.5], 2, inputs);
    expect(importance[0]).toBeCloseTo((4.5 / (2 * 3)) * 3, 12);
    expect(importance[1]).toBeCloseTo((1 / (2 * 2)) * 0.5, 12);
    expect(importance[2]).toBeCloseTo((0.5 / 2) * 6, 12);
  });
});
