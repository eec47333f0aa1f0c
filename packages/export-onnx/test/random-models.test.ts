import { memoryTarget, writeFiles } from "@coppice/checkpoint";
import { type RandomModelShape, randomModel, sampleShapes } from "@coppice/plugin-kit";
import { describe, expect, test } from "vitest";
import { graphFiles } from "../src/graph-files.js";
import { ExportedSession, largestDifference, valuesOf } from "./exported-session.js";
import { referenceLogits } from "./fixture-models.js";

const { "skipped-experts": spared, ...others } = sampleShapes;
const skipping = (rule: "ratio" | "top-p", threshold: number): RandomModelShape => ({
  ...spared,
  router: { order: "topk-softmax", skip: { rule, threshold } },
});
const shapes: Record<string, RandomModelShape> = {
  ...others,
  "experts below a share of the best skipped": skipping("ratio", 0.6),
  "experts beyond a share of the sum skipped": skipping("top-p", 0.6),
  "sigmoid scores and skipped experts": {
    ...spared,
    router: { order: "sigmoid-topk", correction: true, skip: { rule: "top-p", threshold: 0.7 } },
  },
};

const sequence = Int32Array.from([5, 3, 8, 1, 2, 9, 4, 4, 7, 1, 3, 6]);

/** Every kind of part that a model description can have, as far as the graph's texts may go. */
describe.each(Object.entries(shapes))("a random model with %s", (_, shape) => {
  test.each(["cpu", "webgpu"] as const)("gives on %s what the reference backend gives", async (target) => {
    const { model, weights } = randomModel(shape);
    const output = memoryTarget();
    const { files, positions } = graphFiles(model, weights, { target });
    await writeFiles(files, output);
    const ids = sequence.subarray(0, Math.min(sequence.length, positions));
    await using session = await ExportedSession.open(output);
    const expected = await referenceLogits({ model, weights }, ids);
    expect(largestDifference(valuesOf((await session.run(ids)).logits), expected)).toBeLessThan(1e-4);
    session.reset();
    for (let at = 0; at < ids.length; at++) {
      const { logits } = await session.run(ids.subarray(at, at + 1), 1);
      const row = expected.subarray(at * model.vocabSize, (at + 1) * model.vocabSize);
      expect(largestDifference(valuesOf(logits), row)).toBeLessThan(1e-4);
    }
  });
});

test("a model whose experts are only edited is refused with the reason", () => {
  const { model, weights } = randomModel(sampleShapes.biases);
  const edited = { ...model, editOnly: "its layers mix tokens with Mamba" };
  expect(() => graphFiles(edited, weights, { target: "wasm" })).toThrow(
    /for wasm: its layers mix tokens with Mamba/,
  );
});

test("a rule that spares tokens by the attention that they receive is refused with the reason", () => {
  const { model, weights } = randomModel(spared);
  expect(() => graphFiles(model, weights, { target: "cpu" })).toThrow(/layer 0, its rule .* attention/);
});
