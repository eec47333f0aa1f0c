import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
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
