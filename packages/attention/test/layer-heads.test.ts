import { limitableLayers } from "@coppice/core";
import { randomModel, sampleShapes, slowForward } from "@coppice/plugin-kit";
import { describe, expect, it } from "vitest";
import { embedTokens } from "../src/embed-tokens.js";
import { layerHeads } from "../src/layer-heads.js";
import { readProfileWeights } from "../src/profile-weights.js";
import { randomTokens } from "./sample.js";

const shapes = Object.entries(sampleShapes).filter(
  ([, shape]) => limitableLayers(randomModel(shape).model).length > 0,
);

describe("layerHeads", () => {
  it.each(shapes)("has the queries and keys of the formula: %s", async (_, shape) => {
    const source = randomModel(shape);
    const { model, weights } = source;
    const tokens = randomTokens(model, 70, 3);
    const slow = slowForward(source, [...tokens]);
    const positions = Int32Array.of(0, 1, 7, 63, 64, 69);
    for (const layer of limitableLayers(model)) {
      const { heads, kvHeads, headDim } = layer.attention;
      const hidden = Float32Array.from((slow.hidden[layer.index] as readonly (readonly number[])[]).flat());
      if (layer.index === 0) {
        const embedded = embedTokens(model, await weights.read(model.embedding), tokens);
        embedded.forEach((value, i) => {
          expect(value).toBeCloseTo(hidden[i] as number, 5);
        });
      }
      const own = layerHeads(hidden, positions, layer, await readProfileWeights(layer, weights));
      const { queries, keys } = slow.attention[layer.index] as (typeof slow.attention)[number];
      const group = heads / kvHeads;
      for (let head = 0; head < kvHeads; head++) {
        const expected = Array.from(positions, (t) =>
          (queries[t] as readonly (readonly number[])[]).slice(head * group, (head + 1) * group),
        ).flat(2);
        expectClose(own.queries[head] as Float32Array, expected);
        expectClose(
          own.keys[head] as Float32Array,
          keys.flatMap((row) => row[head] as readonly number[]),
        );
        expect(own.values[head]?.length).toBe(tokens.length * headDim);
      }
    }
  });
});

function expectClose(own: Float32Array, expected: readonly number[]) {
  expect(own.length).toBe(expected.length);
  own.forEach((value, i) => {
    expect(Math.abs(value - (expected[i] as number))).toBeLessThan(1e-4 * (1 + Math.abs(value)));
  });
}
