import {
  type LayerPlan,
  moeLayers,
  packBfloat16,
  Rng,
  type RouterSpec,
  type UnitSource,
} from "@coppice/core";
import { randomModel } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { BlockView } from "../src/block-view.js";
import { slotMixes } from "../src/slot-mixes.js";

const tokens = 7;
const experts = 5;
const rng = Rng.fromSeed(3);
const random = (count: number) => Array.from({ length: count }, () => rng.uniform() - 0.5);
/** [tokens][experts][3] */
const outputs = Array.from({ length: tokens }, () => Array.from({ length: experts }, () => random(3)));
const logits = Float32Array.from(random(tokens * experts), (value) => 4 * value);
const grams = Float32Array.from(
  outputs.flatMap((f) =>
    f.flatMap((a) => f.map((b) => a.reduce((sum, v, h) => sum + v * (b[h] as number), 0))),
  ),
);
const [layer] = moeLayers(randomModel({ experts, topK: 2, layers: 1 }).model);
const { router } = (layer as { feedForward: { router: RouterSpec } }).feedForward;

/** Σ_t over tokens of ‖Σ_j g_j f_j - Σ_i a_i Σ_j m_ij f_j‖², top-2 of a softmax divided by their sum. */
function slowErrors(mixes: readonly (readonly number[])[], own: Float32Array): number[] {
  const gates = (z: number[]) => {
    const order = z.map((_, i) => i).sort((a, b) => (z[b] as number) - (z[a] as number));
    const [first, second] = order as [number, number];
    const share = 1 / (1 + Math.exp((z[second] as number) - (z[first] as number)));
    return z.map((_, i) => (i === first ? share : i === second ? 1 - share : 0));
  };
  return outputs.map((f, t) => {
    const g = gates([...logits.subarray(t * experts, (t + 1) * experts)]);
    const a = gates([...own.subarray(t * mixes.length, (t + 1) * mixes.length)]);
    return [0, 1, 2].reduce((sum, h) => {
      const whole = g.reduce((total, gate, j) => total + gate * (f[j]?.[h] as number), 0);
      const other = a.reduce(
        (total, gate, i) =>
          total + gate * (mixes[i] ?? []).reduce((mix, m, j) => mix + m * (f[j]?.[h] as number), 0),
        0,
      );
      return sum + (whole - other) ** 2;
    }, 0);
  });
}

const half: UnitSource = { expert: 1, to: [0, 1, 2, -1], rows: 1, columns: 0.5 };
const rest: UnitSource = { expert: 4, to: [0, 0, 1, 3], rows: 1, columns: [0.2, 0.2, 0.3, 0.7] };

const plans: [string, LayerPlan, number[][], boolean][] = [
  [
    "kept experts",
    { layer: 0, experts: [3, 0, 4] },
    [
      [0, 0, 0, 1, 0],
      [1, 0, 0, 0, 0],
      [0, 0, 0, 0, 1],
    ],
    true,
  ],
  [
    "merged experts",
    {
      layer: 0,
      experts: [0, 2],
      merge: [
        [0.25, 0.75, 0, 0, 0],
        [0, 0, 0.5, 0.3, 0.2],
      ],
    },
    [
      [0.25, 0.75, 0, 0, 0],
      [0, 0, 0.5, 0.3, 0.2],
    ],
    false,
  ],
  [
    "experts with changed down projections",
    { layer: 0, experts: [1, 2], down: packBfloat16(Float32Array.of(0, 0, 0, 1)) },
    [
      [0, 1, 0, 0, 0],
      [0, 0, 1, 0, 0],
    ],
    false,
  ],
  [
    "experts put together from hidden units",
    { layer: 0, experts: [1, 2], units: [[half, rest], null] },
    [
      [0, (3 * 0.5) / 4, 0, 0, (0.2 + 0.2 + 0.3 + 0.7) / 4],
      [0, 0, 1, 0, 0],
    ],
    false,
  ],
];

describe("BlockView", () => {
  test.each(plans)("has the errors of %s, whatever the router", (_, plan, expected, exact) => {
    const mixes = slotMixes(plan, experts);
    expect(mixes.exact).toBe(exact);
    mixes.rows.forEach((row, i) => {
      row.forEach((share, j) => {
        expect(share).toBeCloseTo(expected[i]?.[j] as number, 12);
      });
    });
    const block = new BlockView(router, plan, mixes, { logits, grams }, undefined);
    for (let round = 0; round < 5; round++) {
      const own = Float32Array.from(random(tokens * plan.experts.length), (value) => 4 * value);
      const found = block.errors(block.route(own, undefined));
      slowErrors(expected, own).forEach((error, t) => {
        expect(found[t]).toBeCloseTo(error, 5);
      });
    }
  });
});
