import { type LayerPlan, type MoeLayer, moeLayers, Rng, type RouterSpec, routeTokens } from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { BlockLoss } from "../src/block-loss.js";
import { ChangingSet } from "../src/changing-set.js";

const experts = 12;
const hidden = 5;
const tokens = 40;

const [layer] = moeLayers(randomModel({ seed: 4, experts, topK: 3 }).model) as [MoeLayer];
const { weight } = layer.feedForward.router;
const groups = (score: "max" | "top2") => ({ count: 4, keep: 2, score });

const routers: Record<string, Omit<RouterSpec, "weight" | "topK">> = {
  "softmax divided by its sum": { order: "softmax-topk", normalize: { power: 1 } },
  "softmax divided by another norm": { order: "softmax-topk", normalize: { power: 2 } },
  softmax: { order: "softmax-topk", scale: 1.5 },
  "softmax with a least divisor": { order: "softmax-topk", normalize: { power: 1, least: 0.6 } },
  "softmax with groups": { order: "softmax-topk", groups: groups("max"), scale: 1.7 },
  "softmax with a correction": { order: "softmax-topk", normalize: { power: 1 }, correction: weight },
  sigmoid: { order: "sigmoid-topk", normalize: { power: 1 } },
  "sigmoid with a correction": { order: "sigmoid-topk", correction: weight },
  "sigmoid with groups and a correction": {
    order: "sigmoid-topk",
    normalize: { power: 1, epsilon: 1e-20 },
    groups: groups("top2"),
    correction: weight,
    scale: 2.5,
  },
  "softmax of the chosen": { order: "topk-softmax" },
  "sigmoid of the chosen, of inputs": { order: "topk-sigmoid", scalesInput: true },
  sparsemixer: { order: "sparsemixer", jitter: 0.1 },
  "a rule that skips": { order: "softmax-topk", skip: { rule: "ratio", threshold: 0.6 } },
};

/** Every router with its own top-k, and with a lower one for what is kept. */
const cases = Object.keys(routers).flatMap((name) => [3, 2].map((topK) => [name, topK] as const));

describe.each(cases)("%s, top-%i of the kept", (name, topK) => {
  const router: RouterSpec = { ...(routers[name] as (typeof routers)[string]), weight, topK: 3 };
  const rng = Rng.fromSeed(9);
  const normals = (count: number, scale = 1) =>
    Float32Array.from({ length: count }, () => scale * rng.normal());
  const logits = normals(tokens * experts, 2);
  const correction = router.correction && normals(experts, 0.5);
  const outputs = normals(tokens * experts * hidden);
  const grams = new Float32Array(tokens * experts * experts);
  grams.forEach((_, at) => {
    const [t, i, j] = [Math.floor(at / experts ** 2), Math.floor(at / experts) % experts, at % experts];
    for (let h = 0; h < hidden; h++) {
      grams[at] = (grams[at] as number) + output(t, i, h) * output(t, j, h);
    }
  });
  function output(t: number, expert: number, h: number): number {
    return outputs[(t * experts + expert) * hidden + h] as number;
  }
  const block = new BlockLoss(
    { ...layer, feedForward: { ...layer.feedForward, router } },
    { logits, grams },
    correction,
    topK,
  );

  /** Outputs of the block itself, put together expert by expert. */
  function blockOutput(kept: readonly number[], choosing: number): number[] {
    const cut = Float32Array.from(
      { length: tokens * kept.length },
      (_, i) => logits[Math.floor(i / kept.length) * experts + (kept[i % kept.length] as number)] as number,
    );
    const plan: LayerPlan = { layer: 0, experts: kept, topK: choosing };
    const cutCorrection = correction && Float32Array.from(kept, (expert) => correction[expert] as number);
    const routing = routeTokens(cut, tokens, router, { plan, correction: cutCorrection });
    return Array.from({ length: tokens * hidden }, (_, i) => {
      const [t, h] = [Math.floor(i / hidden), i % hidden];
      let sum = 0;
      for (let at = t * routing.topK; at < (t + 1) * routing.topK; at++) {
        const expert = kept[routing.slots[at] as number];
        if (expert === undefined) continue;
        sum += (router.scalesInput ? 1 : (routing.gates[at] as number)) * output(t, expert, h);
      }
      return sum;
    });
  }
  const all = Array.from({ length: experts }, (_, expert) => expert);
  const full = blockOutput(all, 3);
  const direct = (kept: readonly number[]) => {
    const changed = kept.length === 0 ? full.map(() => 0) : blockOutput(kept, topK);
    return full.reduce((sum, y, i) => sum + (y - (changed[i] as number)) ** 2, 0);
  };
  const whole = direct([]);
  const expectNear = (found: number, wanted: number, what: string) =>
    expect(Math.abs(found - wanted), what).toBeLessThanOrEqual(1e-5 * wanted + 1e-7 * whole);

  test("the loss of a set is that of its outputs", () => {
    for (let size = 0; size <= experts; size++) {
      const kept = rng.sample(experts, size).sort((a, b) => a - b);
      expectNear(block.squared(kept), direct(kept), String(kept));
    }
  });

  test("every step from a set is what its outside says", () => {
    const set = new ChangingSet(block, all);
    // From all experts to none and back, in an order of no meaning.
    for (const expert of [...rng.shuffle([...all]), ...rng.shuffle([...all])]) {
      for (const other of all) {
        const toggled = set.toggled(other);
        expectNear(set.squaredToggled(other), direct(toggled), `${set.experts} to ${toggled}`);
      }
      set.toggle(expert);
      expectNear(set.squared, direct(set.experts), String(set.experts));
    }
    expect(set.experts).toEqual(all);
  });
});
