import { measureTopK, sampledTopK } from "@coppice/allocate";
import { moeLayers } from "@coppice/core";
import { randomModel, sampleShapes } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { load, sampled, sequences } from "./sample.js";

describe("sampledTopK", () => {
  test.each([
    "many-experts",
    "latent-attention",
    "sigmoid-scores",
    "attention-sinks",
    "scaled-inputs",
    "sparsemixer",
  ] as const)("is what running %s measures on one sequence", async (name) => {
    const source = randomModel(sampleShapes[name]);
    const data = sequences(1, 12, 1, source.model.vocabSize);
    const statistics = await sampled(source, data);
    await using runner = await load(source);
    const measured = await measureTopK({ runner, sequences: data });
    const found = await sampledTopK({ ...source, statistics });
    expect(found.map(({ layer }) => layer)).toEqual(moeLayers(source.model).map(({ index }) => index));
    found.forEach(({ costs }, i) => {
      const expected = measured[i]?.costs as readonly number[];
      expect(costs).toHaveLength(expected.length);
      costs.forEach((cost, k) => {
        expect(Math.abs(cost - (expected[k] as number))).toBeLessThanOrEqual(1e-4 * (expected[0] as number));
      });
    });
  });

  test("needs grams, and says which flag collects them", async () => {
    const source = randomModel({ experts: 4, topK: 2, layers: 1 });
    const statistics = await sampled(source, sequences(1, 8, 2, source.model.vocabSize), ["logits"]);
    await expect(sampledTopK({ ...source, statistics })).rejects.toMatchObject({
      code: "COPPICE_STATS_MISSING",
      hint: expect.stringMatching(/--sample .*grams/),
    });
  });
});
