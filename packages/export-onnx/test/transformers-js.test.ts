import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadModel } from "@coppice/checkpoint";
import { folderTarget, openFolder } from "@coppice/checkpoint/node";
import { modelPath } from "@coppice/demo-model";
import { exportOnnx } from "@coppice/export-onnx";
import { sampleAttention } from "@coppice/plugin-kit";
import { fixtureNames, fixturePath, loadFixture } from "@coppice/plugin-kit/node";
import { quantizeCheckpoint, rtn, uniformFormat } from "@coppice/quantizers";
import { AutoModelForCausalLM, env, pipeline, Tensor } from "@huggingface/transformers";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

let scratch: string;
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "coppice-export-"));
  env.allowRemoteModels = false;
});
afterAll(() => rm(scratch, { recursive: true, force: true }));

describe("transformers.js", () => {
  test("runs the folder of the demo model as it is, without a network", () => expectRuns("demo", modelPath));

  test("runs the folder of a quantized model", async () => {
    const folder = join(scratch, "quantized");
    await using loaded = await loadModel(await openFolder(modelPath));
    const format = uniformFormat({ bits: 4, groupSize: 32, symmetric: true, head: 8, embedding: 8 });
    const quantizer = await rtn.create({ clip: false }, undefined);
    await quantizeCheckpoint(loaded, folderTarget(folder), { quantizer, format });
    await expectRuns("quantized-onnx", folder);
  });

  test.each(fixtureNames)("writes what the reference implementation of %s does", async (name) => {
    const folder = join(scratch, name);
    await using loaded = await loadModel(await openFolder(fixturePath(name)));
    const { contextLength } = await exportOnnx(loaded, folderTarget(folder), { target: "cpu" });
    const { golden } = await loadFixture(name);
    const [prompt = new Int32Array(0)] = golden.sequences;
    const wanted = Math.min(golden.greedy.length, contextLength - prompt.length);
    if (wanted < 1) return;
    const model = await AutoModelForCausalLM.from_pretrained(folder);
    try {
      const inputs = new Tensor("int64", BigInt64Array.from(prompt, BigInt), [1, prompt.length]);
      const output = (await model.generate({ inputs, max_new_tokens: wanted, do_sample: false })) as Tensor;
      const tokens = Array.from(output.data as BigInt64Array, Number).slice(prompt.length);
      expect(tokens).toEqual(Array.from(golden.greedy.subarray(0, tokens.length)));
      expect(tokens.length).toBeGreaterThan(0);
    } finally {
      await model.dispose();
    }
  });

  test("refuses a folder whose heads keep spans, which it would run wrongly", async () => {
    const folder = join(scratch, "spans");
    await using loaded = await loadModel(await openFolder(fixturePath("mixtral")));
    const attention = sampleAttention(loaded.model);
    await exportOnnx(loaded, folderTarget(folder), { target: "cpu", attention });
    await expect(AutoModelForCausalLM.from_pretrained(folder)).rejects.toThrow(/coppice_spans/);
  });

  async function expectRuns(name: string, model: string) {
    const folder = join(scratch, name);
    await using loaded = await loadModel(await openFolder(model));
    await exportOnnx(loaded, folderTarget(folder), { target: "cpu" });
    const generator = await pipeline("text-generation", folder);
    try {
      const output = await generator("Compute: 12 + 30 =", { max_new_tokens: 4, do_sample: false });
      // The library pads before the shorter text.
      const both = await generator(["Compute: 12 + 30 =", "Compute: 7 + 1 ="], {
        max_new_tokens: 4,
        do_sample: false,
      });
      expect(both).toMatchObject([
        output,
        [{ generated_text: expect.stringMatching(/^Compute: 7 \+ 1 = 8/) }],
      ]);
      expect(output).toEqual([{ generated_text: expect.stringMatching(/^Compute: 12 \+ 30 = 42(\n|$)/) }]);
    } finally {
      await generator.dispose();
    }
  }
});
