import { moeLayers, Rng, routeTokens } from "@coppice/core";
import { randomModel, sampleShapes } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { gateRange } from "../src/best-gates.js";
import { targetLogits } from "../src/target-logits.js";

const orders = [
  ["mixtral", { experts: 8, topK: 2 }],
  ["latent-attention", sampleShapes["latent-attention"]],
  ["sigmoid-scores", sampleShapes["sigmoid-scores"]],
  ["many-experts", sampleShapes["many-experts"]],
  ["multipliers", sampleShapes.multipliers],
  ["attention-sinks", sampleShapes["attention-sinks"]],
  ["ungated-experts", sampleShapes["ungated-experts"]],
] as const;

describe("targetLogits", () => {
  test.each(orders)("make the router of %s choose what it is to, with those gate weights", (_, shape) => {
    const { router } = (moeLayers(randomModel(shape).model)[0] as { feedForward: { router: Router } })
      .feedForward;
    const { groups: ____, correction: _____, ...plain } = router;
    const range = gateRange(plain);
    const rng = Rng.fromSeed(5);
    const slots = router.weight.shape[0] as number;
    for (let round = 0; round < 50; round++) {
      const logits = Float32Array.from({ length: slots }, () => 3 * (rng.uniform() - 0.5));
      const chosen = Array.from({ length: slots }, (_, slot) => slot)
        .sort(() => rng.uniform() - 0.5)
        .slice(0, router.topK);
      const shares = chosen.map(() => 0.1 + rng.uniform());
      const norm =
        range.kind === "each"
          ? // Low enough for a softmax whose other slots have something left, and above which none of them comes.
            shares.reduce((a, b) => a + b) / 0.9
          : shares.reduce((sum, share) => sum + share ** range.power, 0) ** (1 / range.power);
      const gates = Float64Array.from(shares, (share) => (share / norm) * range.total);
      const out = new Float64Array(slots);
      targetLogits(plain, range, { chosen, gates, error: 0 }, logits, undefined, out);
      const found = routeTokens(Float32Array.from(out), 1, plain);
      expect([...found.slots].sort()).toEqual([...chosen].sort());
      found.slots.forEach((slot, k) => {
        const expected = gates[chosen.indexOf(slot)] as number;
        // Of a softmax over all, others that are lowered leave the chosen more.
        const slack = range.kind === "each" && plain.order === "softmax-topk" ? 0.15 * range.total : 2e-3;
        expect(Math.abs((found.gates[k] as number) - expected)).toBeLessThan(slack);
      });
    }
  });

  test("choose by corrected scores", () => {
    const { model } = randomModel(sampleShapes["sigmoid-scores"]);
    const router = moeLayers(model)[0]?.feedForward.router as Router;
    const correction = Float32Array.of(0.2, -0.1, 0.05, 0, -0.2, 0.1);
    const range = gateRange(router);
    const out = new Float64Array(6);
    const logits = Float32Array.of(1, 0.5, 0, -0.5, -1, 0.2);
    const gates = Float64Array.of(0.55, 0.45);
    targetLogits(router, range, { chosen: [3, 1], gates, error: 0 }, logits, correction, out);
    const found = routeTokens(Float32Array.from(out), 1, router, { correction });
    expect([...found.slots].sort()).toEqual([1, 3]);
    expect(found.gates[found.slots.indexOf(3)]).toBeCloseTo(0.55, 3);
  });

  test("make sparsemixer choose both", () => {
    const router = moeLayers(randomModel(sampleShapes.sparsemixer).model)[0]?.feedForward.router as Router;
    const logits = Float32Array.of(1, 3, 2.8, 0.5, 2, 1.5);
    const out = new Float64Array(6);
    const gates = Float64Array.of(0.3, 0.7);
    targetLogits(router, gateRange(router), { chosen: [4, 0], gates, error: 0 }, logits, undefined, out);
    expect([...routeTokens(Float32Array.from(out), 1, router).slots].sort()).toEqual([0, 4]);
  });
});

type Router = ReturnType<typeof moeLayers>[number]["feedForward"]["router"];
