import { type LoadedCheckpoint, loadModel, memoryTarget } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import { exportOnnx } from "@coppice/export-onnx";
import { fixturePath } from "@coppice/plugin-kit/node";
import * as web from "onnxruntime-web";
import { beforeAll, describe, expect, test } from "vitest";
import { ExportedSession, largestDifference, type Runtime, valuesOf } from "./exported-session.js";
import { quantized, referenceLogits } from "./fixture-models.js";

const ids = Int32Array.from([5, 3, 8, 1, 2, 9, 4]);

beforeAll(() => {
  web.env.wasm.numThreads = 1;
});

describe("WebAssembly gives what the reference backend gives", () => {
  test.each(["mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"] as const)("%s", async (name) => {
    await using loaded = await loadModel(await openFolder(fixturePath(name)));
    await expectSame(loaded);
  });

  test.each([2, 4, 8] as const)("Mixtral and a tied Qwen3-MoE of %i bits", async (bits) => {
    for (const family of ["mixtral", "qwen3_moe"] as const) {
      await using loaded = await quantized(family, bits, false);
      await expectSame(loaded);
    }
  });

  async function expectSame(loaded: LoadedCheckpoint) {
    const output = memoryTarget();
    await exportOnnx(loaded, output, { target: "wasm" });
    await using session = await ExportedSession.open(output, web as unknown as Runtime);
    const expected = await referenceLogits(loaded, ids);
    const vocab = loaded.model.vocabSize;
    const prompt = valuesOf((await session.run(ids.subarray(0, -1))).logits);
    expect(largestDifference(prompt, expected.subarray(0, -vocab))).toBeLessThan(2e-4);
    const next = valuesOf((await session.run(ids.subarray(-1), 1)).logits);
    expect(largestDifference(next, expected.subarray(-vocab))).toBeLessThan(2e-4);
  }
});
