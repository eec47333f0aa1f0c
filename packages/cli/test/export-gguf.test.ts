import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { loadModel } from "@coppice/checkpoint";
import { openFolder } from "@coppice/checkpoint/node";
import type { MlpSpec } from "@coppice/core";
import { describe, expect, it } from "vitest";
import { coppiceHere, coppiceJson } from "./cli.js";
import { copyModel, workshop } from "./workshop.js";

const work = workshop();
const model = copyModel(join(work, "model"));

describe("export --format gguf", () => {
  it("writes one file in a folder", async () => {
    const out = join(work, "gguf");
    const result = await coppiceJson(["export", model, "--format", "gguf", "--type", "q4_0", "--out", out]);
    expect(result).toMatchObject({ file: "model-Q4_0.gguf", architecture: "llama", tensors: 33 });
    const bytes = readFileSync(join(out, "model-Q4_0.gguf"));
    expect(bytes.length).toBe(result["bytes"]);
    expect(bytes.subarray(0, 4).toString()).toBe("GGUF");
  });

  it("keeps the codes of a quantized model", async () => {
    const quantized = join(work, "quantized");
    await coppiceJson(["quantize", model, "--bits", "4", "--group", "32", "--out", quantized]);
    const out = join(work, "from-codes");
    const written = await coppiceJson([
      "export",
      quantized,
      "--format",
      "gguf",
      "--type",
      "q4_0",
      "--out",
      out,
    ]);
    await using loaded = await loadModel(await openFolder(quantized));
    const bytes = readFileSync(join(out, String(written["file"])));
    const [layer] = loaded.model.layers;
    if (layer?.feedForward.kind !== "moe") throw new Error("the model has no experts");
    const [{ up }] = layer.feedForward.experts as [MlpSpec];
    const matrix = await loaded.weights.readQuantized?.(up);
    if (!matrix) throw new Error("the model is not quantized");
    // In the file a byte holds codes j and j + 16 of a group of 32.
    for (let group = 0; group < matrix.scales.length; group++) {
      const code = (i: number) => ((matrix.codes[group * 16 + (i >> 1)] as number) >> (4 * (i % 2))) & 15;
      const block = Buffer.from(Array.from({ length: 16 }, (_, j) => code(j) | (code(j + 16) << 4)));
      expect(bytes.includes(block), `group ${group}`).toBe(true);
    }
  });

  it("refuses what exists, a folder inside the model, and types that it does not write", async () => {
    const args = ["export", model, "--format", "gguf", "--out"];
    expect(await coppiceHere([...args, model])).toMatchObject({ code: 2 });
    expect(await coppiceHere([...args, join(model, "gguf")])).toMatchObject({ code: 2 });
    const out = join(work, "q2");
    const failed = await coppiceHere([...args, out, "--type", "q2_k"]);
    expect(failed).toMatchObject({ code: 2, stderr: expect.stringContaining("f16, q8_0, q4_0") });
    expect(existsSync(out)).toBe(false);
  });
});
