import { loadModel, memoryTarget } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { exportOnnx } from "@coppice/export-onnx";
import { fixtureNames, fixturePath, loadFixture } from "@coppice/plugin-kit/node";
import { describe, expect, test } from "vitest";
import { ExportedSession, largestDifference, valuesOf } from "./exported-session.js";

const tolerance = 2e-4;

describe.each(fixtureNames)("%s", (name) => {
  test.each(["cpu", "webgpu"] as const)("the graph for %s gives the golden logits", async (target) => {
    await using loaded = await loadModel(await openFolder(fixturePath(name)));
    const { golden, model } = await loadFixture(name);
    const output = memoryTarget();
    const { contextLength } = await exportOnnx(loaded, output, { target });
    await using session = await ExportedSession.open(output);
    const vocab = model.vocabSize;
    let offset = 0;
    for (const whole of golden.sequences) {
      const sequence = whole.subarray(0, contextLength);
      const expected = golden.logits.subarray(offset, offset + sequence.length * vocab);
      offset += whole.length * vocab;
      session.reset();
      expect(largestDifference(valuesOf((await session.run(sequence)).logits), expected)).toBeLessThan(
        tolerance,
      );
      // Again in pieces: a prompt, of which only the last logits are wanted, and then token by token.
      session.reset();
      const prompt = sequence.length >> 1;
      for (let at = 0; at < sequence.length; ) {
        const end = at === 0 ? prompt : at + 1;
        const { logits } = await session.run(sequence.subarray(at, end), 1);
        expect(logits?.dims).toEqual([1, 1, vocab]);
        const row = expected.subarray((end - 1) * vocab, end * vocab);
        expect(largestDifference(valuesOf(logits), row)).toBeLessThan(tolerance);
        at = end;
      }
    }
  });
});
