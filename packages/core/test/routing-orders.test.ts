import { type LayerPlan, Rng, type RouterSpec, routeTokens } from "@coppice/core";
import { describe, expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

const experts = 12;

function router(changes: Partial<RouterSpec>): RouterSpec {
  const [layer] = tinyModel({ experts }).model.layers;
  if (layer?.feedForward.kind !== "moe") throw new Error("layer 0 has experts");
  const { normalize: _, ...rest } = layer.feedForward.router;
  return { ...rest, topK: 3, ...changes };
}

type Choice = Map<number, number>;
type Slow = (z: number[], correction: number[]) => Choice;

const sum = (values: number[]) => values.reduce((a, b) => a + b, 0);
const softmax = (z: number[]) => z.map((v) => Math.exp(v) / sum(z.map(Math.exp)));
const sigmoid = (z: number[]) => z.map((v) => 1 / (1 + Math.exp(-v)));
const top = (values: number[], k: number) =>
  values
    .map((_, i) => i)
    .sort((a, b) => (values[b] as number) - (values[a] as number) || a - b)
    .slice(0, k);
const pick = (slots: number[], values: number[], factor = 1): Choice =>
  new Map(slots.map((slot) => [slot, (values[slot] as number) * factor]));
const sumOf = (slots: number[], values: number[]) => sum(slots.map((slot) => values[slot] as number));

/** Experts of the best `keep` of `count` groups, by the sum of each one's `best` largest values. */
function inGroups(values: number[], count: number, keep: number, best: number): number[] {
  const size = values.length / count;
  const scores = Array.from({ length: count }, (_, g) =>
    sum(
      values
        .slice(g * size, (g + 1) * size)
        .sort((a, b) => b - a)
        .slice(0, best),
    ),
  );
  const groups = top(scores, keep);
  return values.map((value, i) => (groups.includes(Math.floor(i / size)) ? value : Number.NEGATIVE_INFINITY));
}

/** Every order as its family writes it, in float64. */
const orders: Record<string, { spec: Partial<RouterSpec>; corrected?: true; slow: Slow }> = {
  "softmax, top-k, not divided (OLMoE)": {
    spec: {},
    slow: (z) => pick(top(softmax(z), 3), softmax(z)),
  },
  "softmax in groups, scaled (DeepSeek-V2)": {
    spec: { groups: { count: 4, keep: 2, score: "max" }, scale: 1.5 },
    slow: (z) => pick(top(inGroups(softmax(z), 4, 2, 1), 3), softmax(z), 1.5),
  },
  "sigmoid in groups with correction, divided, scaled (DeepSeek-V3)": {
    spec: {
      order: "sigmoid-topk",
      groups: { count: 4, keep: 2, score: "top2" },
      normalize: { power: 1, epsilon: 1e-20 },
      scale: 2.5,
    },
    corrected: true,
    slow: (z, c) => {
      const s = sigmoid(z);
      const b = s.map((v, i) => v + (c[i] as number));
      const slots = top(inGroups(b, 4, 2, 2), 3);
      return pick(slots, s, 2.5 / (sumOf(slots, s) + 1e-20));
    },
  },
  "sigmoid with correction, divided (MiniMax-M2)": {
    spec: { order: "sigmoid-topk", normalize: { power: 1 } },
    corrected: true,
    slow: (z, c) => {
      const s = sigmoid(z);
      const slots = top(
        s.map((v, i) => v + (c[i] as number)),
        3,
      );
      return pick(slots, s, 1 / sumOf(slots, s));
    },
  },
  "softmax with correction, divided by at least something (ERNIE)": {
    spec: { normalize: { power: 1, least: 0.7 } },
    corrected: true,
    slow: (z, c) => {
      const p = softmax(z);
      const slots = top(
        p.map((v, i) => v + (c[i] as number)),
        3,
      );
      return pick(slots, p, 1 / Math.max(sumOf(slots, p), 0.7));
    },
  },
  "top-k, then softmax (GPT-OSS, Granite)": {
    spec: { order: "topk-softmax" },
    slow: (z) => {
      const slots = top(z, 3);
      const g = softmax(slots.map((slot) => z[slot] as number));
      return new Map(slots.map((slot, i) => [slot, g[i] as number]));
    },
  },
  "top-k, then sigmoid (Llama-4)": {
    spec: { order: "topk-sigmoid", topK: 1 },
    slow: (z) => pick(top(z, 1), sigmoid(z)),
  },
  "divided by the L2 norm (DBRX)": {
    spec: { normalize: { power: 2 } },
    slow: (z) => {
      const p = softmax(z);
      const slots = top(p, 3);
      return pick(slots, p, 1 / Math.hypot(...slots.map((slot) => p[slot] as number)));
    },
  },
  "sparsemixer (Phi-3.5-MoE)": {
    spec: { order: "sparsemixer", topK: 2, jitter: 0.15 },
    slow: (z) => {
      const chosen: Choice = new Map();
      const rest = new Set(z.keys());
      for (let rank = 0; rank < 2; rank++) {
        const best = [...rest].reduce((a, b) => ((z[b] as number) > (z[a] as number) ? b : a));
        const m = z[best] as number;
        const near = [...rest].filter(
          (j) => (m - (z[j] as number)) / Math.max(Math.abs(z[j] as number), m) <= 0.3,
        );
        chosen.set(best, Math.exp(m) / sum(near.map((j) => Math.exp(z[j] as number))));
        rest.delete(best);
      }
      return chosen;
    },
  },
};

describe("routeTokens, every order", () => {
  test.each(Object.entries(orders))("%s", (_, { spec, corrected, slow }) => {
    const rng = Rng.fromSeed(5);
    const tokens = 200;
    const logits = Float32Array.from({ length: tokens * experts }, () => 1.5 * rng.normal());
    const correction = Float32Array.from({ length: experts }, () => (corrected ? 0.2 * rng.normal() : 0));
    const found = routeTokens(logits, tokens, router(spec), corrected ? { correction } : {});
    const { topK } = found;
    for (let token = 0; token < tokens; token++) {
      const z = [...logits.subarray(token * experts, (token + 1) * experts)];
      const expected = slow(z, [...correction]);
      expect([...found.slots.subarray(token * topK, (token + 1) * topK)]).toEqual([...expected.keys()]);
      [...expected.values()].forEach((gate, i) => {
        expect(found.gates[token * topK + i]).toBeCloseTo(gate, 5);
      });
    }
  });

  test("gives nothing to experts outside of the best groups, when those are fewer than the top-k", () => {
    const spec = router({ topK: 2, groups: { count: 4, keep: 1, score: "max" }, normalize: { power: 1 } });
    const { slots, gates } = routeTokens(Float32Array.of(3, 1, 2), 1, spec, {
      plan: { layer: 0, experts: [0, 3, 4] },
    });
    expect(slots[0]).toBe(0);
    expect([...gates]).toEqual([1, 0]);
  });

  test("dropping experts equals logits of -infinity, groups and corrections included", () => {
    const rng = Rng.fromSeed(9);
    const tokens = 100;
    const kept = [0, 1, 4, 5, 9, 11];
    const plan: LayerPlan = { layer: 0, experts: kept };
    for (const [name, { spec, corrected }] of Object.entries(orders)) {
      const logits = Float32Array.from({ length: tokens * experts }, () => rng.normal());
      const correction = Float32Array.from({ length: experts }, () => 0.2 * rng.normal());
      const columns = (values: Float32Array, rows: number) =>
        Float32Array.from(
          Array.from({ length: rows }, (_, r) => kept.map((e) => values[r * experts + e] as number)).flat(),
        );
      const masked = logits.map((z, i) => (kept.includes(i % experts) ? z : -1e9));
      const whole = routeTokens(masked, tokens, router(spec), {
        correction: corrected && correction.map((c, i) => (kept.includes(i) ? c : -1e9)),
      });
      const sliced = routeTokens(columns(logits, tokens), tokens, router(spec), {
        plan,
        correction: corrected && columns(correction, 1),
      });
      expect(
        [...sliced.slots].map((slot) => kept[slot]),
        name,
      ).toEqual([...whole.slots]);
      sliced.gates.forEach((gate, i) => {
        expect(gate).toBeCloseTo(whole.gates[i] as number, 5);
      });
    }
  });
});
