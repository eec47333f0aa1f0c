import { gatesOfAll, type RouterSpec, routeTokens } from "@coppice/core";
import { expect, test } from "vitest";
import { tinyModel } from "./tiny-model.js";

const [layer] = tinyModel({ experts: 4, normalize: false }).model.layers;
if (layer?.feedForward.kind !== "moe") throw new Error("layer 0 has experts");
const own = layer.feedForward.router;
const logits = Float32Array.of(0.5, -1, 2, 0, 1, 3, -2, 0.25);
const sigmoid = (value: number) => 1 / (1 + Math.exp(-value));

test("every slot has the gate weight that it has when it is chosen", () => {
  const router: RouterSpec = { ...own, order: "topk-sigmoid", scalesInput: true, scale: 1.5 };
  const found = gatesOfAll(logits, 2, router);
  expect(found).toHaveLength(8);
  logits.forEach((logit, i) => {
    expect(found[i]).toBeCloseTo(1.5 * sigmoid(logit), 6);
  });
  const { slots, gates, topK } = routeTokens(logits, 2, router);
  slots.forEach((slot, i) => {
    expect(found[Math.floor(i / topK) * 4 + slot]).toBe(gates[i]);
  });
});

test("neither groups, nor a lower top-k, nor a rule that skips leave one out", () => {
  const router: RouterSpec = { ...own, order: "sigmoid-topk", groups: { count: 2, keep: 1, score: "max" } };
  const plan = { layer: 0, experts: [0, 1, 2, 3], topK: 1, skip: { rule: "ratio", threshold: 1 } } as const;
  const found = gatesOfAll(logits, 2, router, { plan, correction: Float32Array.of(9, 0, 0, 5) });
  logits.forEach((logit, i) => {
    expect(found[i]).toBeCloseTo(sigmoid(logit), 6);
  });
});
