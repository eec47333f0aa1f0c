import {
  limitableLayers,
  type MoeModel,
  type RunAttention,
  type Runner,
  type SpanRule,
  type WeightReader,
} from "@coppice/core";
import { randomModel, sampleShapes } from "@coppice/plugin-kit";
import { describe, expect, it } from "vitest";
import { embedTokens } from "../src/embed-tokens.js";
import { profileHeads } from "../src/head-profile.js";
import { soleHeadsPlan } from "../src/sole-heads-plan.js";
import { load, randomTokens } from "./sample.js";

const rules: SpanRule[] = [
  { alpha: 6, beta: 0 },
  { alpha: 0, beta: 0.25 },
  { alpha: 2, beta: 0.5 },
  { alpha: 0, beta: 1 },
];
const grid = { blockSize: 2, sinks: 2 };

/** The residual stream behind attention of a layer, [T, hidden], from the layer's own input without limits. */
async function behindAttention(
  runner: Runner,
  tokens: Int32Array,
  layer: number,
  attention?: RunAttention,
): Promise<Float32Array> {
  const hidden =
    layer === 0
      ? undefined
      : (await runner.run({ sequences: [tokens], to: layer, boundaries: [layer] })).boundaries.get(layer);
  let residual = new Float32Array(0);
  await runner.run({
    sequences: [tokens],
    from: layer,
    to: layer + 1,
    boundaries: [layer + 1],
    ...(hidden && { hidden }),
    ...(attention && { attention }),
    tap: {
      fields: ["residual"],
      onLayer: ({ rows, residual: own = new Float32Array(0) }) => {
        const size = own.length / rows.length;
        residual = new Float32Array(own.length);
        rows.forEach((row, i) => {
          residual.set(own.subarray(i * size, (i + 1) * size), row * size);
        });
      },
    },
  });
  return residual;
}

function differences(model: MoeModel, a: Float32Array, b: Float32Array): number[] {
  const rows = a.length / model.hiddenSize;
  return Array.from({ length: rows }, (_, row) => {
    let sum = 0;
    for (let i = row * model.hiddenSize; i < (row + 1) * model.hiddenSize; i++)
      sum += ((a[i] as number) - (b[i] as number)) ** 2;
    return sum;
  });
}

describe("profileHeads", () => {
  it.each([
    ["plain", {}],
    ["projection norms, clip", sampleShapes["projection-norms"]],
    ["norm after rotary", sampleShapes["norm-after-rotary"]],
    ["learned sinks", { seed: 9, sinks: true, qkNorm: true }],
  ])("measures what limiting one head changes behind attention: %s", async (_, shape) => {
    const source = randomModel({ ...shape, theta: 10 });
    const { model, weights } = source;
    const tokens = randomTokens(model, 24, 5);
    await using runner = await load(source);
    const { losses, sensitivity } = await profileHeads({
      ...{ model, runner, weights, rules, ...grid },
      samples: [[{ tokens, responseFrom: 0 }]],
      rows: 64,
      promptWeight: 1,
    });
    expect(sensitivity.every((factor) => factor === 1)).toBe(true);
    const expected: number[] = [];
    for (const { index, attention } of limitableLayers(model)) {
      const dense = await behindAttention(runner, tokens, index);
      const none = await outputs(runner, weights, tokens, index, dense);
      for (let head = 0; head < attention.kvHeads; head++) {
        for (const rule of rules) {
          const plan = soleHeadsPlan(model, { ...grid, layer: index, heads: [head], rule });
          const limited = await behindAttention(runner, tokens, index, { plan });
          // The last token predicts nothing.
          const sum = (values: readonly number[]) => values.slice(0, -1).reduce((a, b) => a + b, 0);
          expected.push(sum(differences(model, limited, dense)) / sum(none));
        }
      }
    }
    const own = losses[0] as Float64Array;
    expect(own.length).toBe(expected.length);
    expected.forEach((value, i) => {
      expect(Math.abs((own[i] as number) - value)).toBeLessThan(1e-4 * (1e-2 + value));
    });
    expect(Math.max(...own)).toBeGreaterThan(0.001);
  });
});

/** Squared norms of what attention adds to the residual stream. */
async function outputs(
  runner: Runner,
  weights: WeightReader,
  tokens: Int32Array,
  layer: number,
  behind: Float32Array,
) {
  const { model } = runner;
  if (layer === 0)
    return differences(model, behind, embedTokens(model, await weights.read(model.embedding), tokens));
  const { boundaries } = await runner.run({ sequences: [tokens], to: layer, boundaries: [layer] });
  return differences(model, behind, boundaries.get(layer) as Float32Array);
}
